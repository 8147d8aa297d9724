-- The journal: one worker's group commit, and reading a session's log.

-- name: commit
SELECT * FROM journal_commit(
    $1, $2, $3, $4, $5,
    $6, $7, $8, $9,
    $10, $11, $12, $13, $14, $15,
    $16, $17, $18, $19, $20, $21, $22, $23,
    $24, $25, $26, $27, $28, $29, $30, $31, $32, $33);

-- name: end_unstorable
-- Ends run $1 of session $2 under epoch $3 with the error $4, for its owner can't. No row: the epoch is over.
WITH fenced AS MATERIALIZED (
    SELECT id FROM sessions WHERE id = $2 AND head_run_id = $1 AND head_epoch = $3 FOR NO KEY UPDATE
)
SELECT end_run_from_outside($1, 'failed', 'unstorable', $4, clock_timestamp()) AS next_run FROM fenced;

-- name: read
-- The floor of session $2, and its log after seq $3 or the floor, whichever is higher: at most $4 events, and of these
-- only as many as begin within $5 bytes of data. One row without an event where there are none.
SELECT s.floor_seq, page.seq, page.type, page.run_id, page.at, page.data
FROM sessions s LEFT JOIN LATERAL (
    SELECT seq, type, run_id, at, data FROM (
        SELECT seq, type, run_id, at, data,
               sum(octet_length(data::text)) OVER (ORDER BY seq) - octet_length(data::text) AS start
        FROM events
        WHERE org_id = s.org_id AND session_id = s.id AND seq > greatest($3, s.floor_seq)
        ORDER BY seq LIMIT $4
    ) AS counted
    WHERE $5::bigint IS NULL OR start < $5
) AS page ON true
WHERE s.org_id = $1 AND s.id = $2
ORDER BY page.seq;

-- name: at_floor
-- What the log of session $2 came to up to its floor: what was said in the turns that began there, the newest $3
-- messages at most, and of these only those that fit into $4 bytes; and the session's unfinished run.
SELECT s.floor_seq, s.floor_at, h.id AS active_run_id, h.status AS active_run_status, said.messages, said.truncated
FROM sessions s LEFT JOIN runs h ON h.id = s.head_run_id CROSS JOIN LATERAL (
    SELECT coalesce(json_agg(json_build_object('message_id', id, 'run_id', run_id, 'role', role, 'content', content)
                             ORDER BY turn, position) FILTER (WHERE place <= $3 AND size <= $4), '[]') AS messages,
           count(*) FILTER (WHERE place > $3 OR size > $4) > 0 AS truncated
    FROM (
        SELECT *, row_number() OVER newest_first AS place, sum(octet_length(content::text)) OVER newest_first AS size
        FROM (
            SELECT id, run_id, role, content, turn, position FROM messages
            WHERE session_id = s.id AND path = '' AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
              AND turn <= (SELECT turn FROM runs WHERE session_id = s.id AND first_seq <= s.floor_seq
                           ORDER BY turn DESC LIMIT 1)
            ORDER BY turn DESC, position DESC LIMIT $3::integer + 1
        ) AS newest
        WINDOW newest_first AS (ORDER BY turn DESC, position DESC)
    ) AS counted
) AS said
WHERE s.org_id = $1 AND s.id = $2;

-- name: last_seqs
SELECT id, org_id, last_seq FROM sessions WHERE id = ANY ($1::text[]);

-- name: end_seq
-- Where the log of run $2 ends: at its `done`, or with the floor if that is gone; NULL while the run is unfinished.
SELECT coalesce((SELECT seq FROM events WHERE run_id = r.id AND type = 'done'),
                CASE WHEN r.finished_at IS NOT NULL THEN s.floor_seq END)
FROM runs r JOIN sessions s ON s.id = r.session_id
WHERE r.org_id = $1 AND r.id = $2;
