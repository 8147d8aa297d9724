-- What the workers' scheduler removes.

-- name: forget_idempotency_keys
DELETE FROM idempotency_keys
WHERE (org_id, key) IN (SELECT org_id, key FROM idempotency_keys
                        WHERE created_at < now() - interval '24 hours' LIMIT 5000);

-- name: forget_dead_workers
DELETE FROM workers WHERE seen_at < now() - interval '1 hour';
