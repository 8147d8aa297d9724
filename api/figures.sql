-- What Postgres knows of the state of the whole deployment. Each statement but the last gives rows of (labels…, value).

-- Running and waiting runs are always heads of their sessions; queued ones may stand behind a head.
-- name: runs_unfinished
SELECT s.status, coalesce(n.runs, 0)
FROM unnest(ARRAY['queued', 'running', 'waiting']) AS s (status)
LEFT JOIN (
    SELECT status, count(*) AS runs FROM runs WHERE head GROUP BY status
) AS n USING (status)
WHERE s.status <> 'queued'
UNION ALL
SELECT 'queued', (SELECT count(*) FROM runs WHERE head AND status = 'queued')
                 + (SELECT count(*) FROM runs WHERE status = 'queued' AND NOT head);

-- Ids begin with the time of their birth in milliseconds, so the newest are one stretch of the primary key.
-- name: runs_recent
SELECT status, count(*) FROM runs
WHERE id > 'run_' || lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 3600000), 12, '0')
GROUP BY status;

-- name: queue_claimable
SELECT count(*) FROM runs WHERE head AND status = 'queued' AND pause_requested_at IS NULL;

-- name: queue_oldest
SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
FROM runs WHERE head AND status = 'queued' AND pause_requested_at IS NULL;

-- name: workers
SELECT count(*) FROM workers WHERE seen_at > now() - interval '15 seconds';

-- name: slots
SELECT coalesce(sum(slots), 0) FROM workers WHERE seen_at > now() - interval '15 seconds';

-- name: slots_busy
SELECT coalesce(sum(running), 0) FROM workers WHERE seen_at > now() - interval '15 seconds';

-- name: worker_figures
SELECT host || ':' || pid AS worker, figures FROM workers WHERE seen_at > now() - interval '15 seconds';
