-- Answers kept under the caller's Idempotency-Key.

-- Less than the API's patience with Postgres, so that a twin at work is told from a server that is away.
-- name: limit_wait
SET LOCAL lock_timeout = '2s';

-- Waits for a transaction that has inserted the same key and not ended yet.
-- name: claim
INSERT INTO idempotency_keys (org_id, key, route, request_hash, status, body)
VALUES ($1, $2, $3, $4, 0, 'null')
ON CONFLICT DO NOTHING
RETURNING true;

-- name: get
SELECT route, request_hash, status, body FROM idempotency_keys WHERE org_id = $1 AND key = $2;

-- name: keep
UPDATE idempotency_keys SET status = $3, body = $4 WHERE org_id = $1 AND key = $2;
