-- Upkeep of memories.

-- name: any_memories
SELECT EXISTS (SELECT FROM memories)

-- name: walk_sessions
-- Of the next $2 shelves of sessions above $1 the last one, and those whose session is gone.
WITH next AS (SELECT id, org_id, owner FROM memory_shelves WHERE scope = 'session' AND id > $1 ORDER BY id LIMIT $2)
SELECT coalesce(max(n.id), 0) AS last, coalesce(array_agg(n.id) FILTER (WHERE s.id IS NULL), '{}') AS gone
FROM next n LEFT JOIN sessions s ON s.id = n.owner AND s.org_id = n.org_id

-- name: clear_shelf
-- At most $2 memories of shelf $1.
SELECT memory_forget(s.org_id, ARRAY(SELECT no FROM memories WHERE shelf = s.id LIMIT $2))
FROM memory_shelves s WHERE s.id = $1

-- name: unshelve
SELECT memory_unshelve($1)

-- name: retired_tables
SELECT format('memory_space_%s', id) AS name FROM memory_spaces
WHERE state = 'retired' AND retired_at < now() - make_interval(secs => $1)
      AND to_regclass(format('memory_space_%s', id)) IS NOT NULL
