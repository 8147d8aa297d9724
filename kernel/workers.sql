-- The living, as their heartbeats have written them down.

-- name: list
SELECT id, host, pid, slots, running, started_at, seen_at,
       extract(epoch FROM clock_timestamp() - seen_at)::double precision AS silent_seconds
FROM workers ORDER BY started_at, id;
