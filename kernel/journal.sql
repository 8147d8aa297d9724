-- The journal: one worker's group commit, and reading a session's log.

-- name: commit
SELECT * FROM journal_commit(
    $1, $2, $3, $4, $5,
    $6, $7, $8, $9,
    $10, $11, $12, $13, $14,
    $15, $16, $17, $18, $19, $20, $21, $22,
    $23, $24, $25, $26, $27, $28, $29, $30, $31, $32);

-- name: read
-- The log of session $2 after seq $3: at most $4 events, and of these only as many as begin within $5 bytes of data.
SELECT seq, type, run_id, at, data FROM (
    SELECT seq, type, run_id, at, data,
           sum(octet_length(data::text)) OVER (ORDER BY seq) - octet_length(data::text) AS start
    FROM events
    WHERE org_id = $1 AND session_id = $2 AND seq > $3
    ORDER BY seq LIMIT $4
) AS page
WHERE $5::bigint IS NULL OR start < $5
ORDER BY seq;

-- name: last_seq
SELECT last_seq FROM sessions WHERE org_id = $1 AND id = $2;

-- name: last_seqs
SELECT id, org_id, last_seq FROM sessions WHERE id = ANY ($1::text[]);

-- name: done_seq
SELECT seq FROM events WHERE run_id = $1 AND type = 'done';
