-- The graph of a space: an HNSW index over those of its vectors that are in_graph. {table} is the table of the space.

-- name: large_shelves
SELECT id, memories FROM memory_shelves WHERE memories >= $1 ORDER BY memories DESC

-- name: waiting
-- Vectors of shelves $1 that are not in the graph, counted up to $2.
SELECT count(*) FROM (SELECT FROM {table} WHERE shelf = ANY ($1::bigint[]) AND NOT in_graph LIMIT $2) AS w

-- name: share
-- How many there are of them, and how many of these wait.
SELECT count(*) AS all, count(*) FILTER (WHERE NOT in_graph) AS waiting FROM {table} WHERE shelf = ANY ($1::bigint[])

-- name: move
-- Vectors of shelf $1, at most $2. Those that somebody is about to remove are left alone.
WITH next AS (SELECT memory FROM {table} WHERE shelf = $1 AND NOT in_graph LIMIT $2 FOR UPDATE SKIP LOCKED)
UPDATE {table} AS t SET in_graph = true FROM next WHERE t.memory = next.memory

-- name: is_built
-- Whether the index is there and whole; the building of one may have broken off.
SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{table}_graph')), false)

-- name: lock
SELECT pg_try_advisory_lock(1280659789, $1)

-- name: unlock
SELECT pg_advisory_unlock(1280659789, $1)

-- name: drop
DROP INDEX IF EXISTS {table}_graph

-- name: build
CREATE INDEX CONCURRENTLY {table}_graph ON {table}
USING hnsw (embedding halfvec_ip_ops) WITH (m = 16, ef_construction = 64) WHERE in_graph
