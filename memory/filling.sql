-- Filling a space: memories that lack words, or a vector in it. {table} is the table of the space.

-- name: filled_to
SELECT filled_to, (SELECT coalesce(max(no), 0) FROM memories) AS last FROM memory_spaces WHERE id = $1

-- name: reach
-- How far the next $2 memories above $1 go: up to the first one that is younger than $3 seconds, because what has a
-- lower number than that one may not be committed yet.
WITH next AS (SELECT no, created_at FROM memories WHERE no > $1 ORDER BY no LIMIT $2)
SELECT max(no) FROM next
WHERE no < (SELECT coalesce(min(no), 1::bigint << 62) FROM next WHERE created_at >= now() - make_interval(secs => $3))

-- name: lacking
-- Above $1, up to $2, at most $3. What the release before this one wrote has its vector, if it is of model $4.
SELECT m.no, m.shelf, m.org_id, m.text, m.context, m.updated_at, w.memory IS NULL AS words,
       CASE WHEN m.embedding_model = $4 THEN m.embedding::text END AS vector
FROM memories m
LEFT JOIN memory_words w ON w.memory = m.no
LEFT JOIN {table} v ON v.memory = m.no
WHERE m.no > $1 AND m.no <= $2 AND m.ended_at IS NULL AND (w.memory IS NULL OR v.memory IS NULL)
ORDER BY m.no LIMIT $3

-- name: lock
SELECT FROM memory_shelves WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE

-- name: still_lacking
-- Of memories $1, as they were at $2, those that have not changed since.
SELECT m.no, m.shelf, m.org_id, m.kind, w.memory IS NULL AS words, v.memory IS NULL AS vector
FROM unnest($1::bigint[], $2::timestamptz[]) AS g (no, updated_at)
JOIN memories m USING (no, updated_at)
LEFT JOIN memory_words w ON w.memory = m.no
LEFT JOIN {table} v ON v.memory = m.no
WHERE m.ended_at IS NULL

-- name: index
SELECT memory_index($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, NULL)

-- name: add_vectors
INSERT INTO {table} (memory, shelf, kind, embedding)
SELECT g.memory, g.shelf, g.kind, g.vector::halfvec
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[]) AS g (memory, shelf, kind, vector)

-- name: advance
UPDATE memory_spaces SET filled_to = $3 WHERE id = $1 AND filled_to = $2 RETURNING true

-- name: serve
SELECT memory_space_serve($1)
