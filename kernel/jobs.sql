-- Background jobs. Times are the database's.

-- name: add_job
INSERT INTO jobs (id, org_id, kind, key, payload, attempts, not_before)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, now() + make_interval(secs => $7))
ON CONFLICT (kind, key) WHERE finished_at IS NULL DO NOTHING
RETURNING id

-- name: open_job
SELECT id FROM jobs WHERE kind = $1 AND key = $2 AND finished_at IS NULL

-- name: take_job
-- One that is due, or whose worker has died; of the latter only where another attempt is left.
UPDATE jobs
SET status = 'running', attempt = attempt + 1, worker = $1, lease_until = now() + make_interval(secs => $2)
WHERE id = (SELECT id FROM jobs
            WHERE kind = ANY ($3::text[])
                  AND (status = 'queued' AND not_before <= now()
                       OR status = 'running' AND lease_until < now() AND attempt < attempts)
            ORDER BY not_before, id
            LIMIT 1
            FOR UPDATE SKIP LOCKED)
RETURNING id, org_id, kind, key, payload::text, attempt, attempts

-- name: bury_jobs
-- Those whose worker has died in their last attempt.
UPDATE jobs
SET status = 'failed', finished_at = now(), lease_until = NULL,
    error = json_build_object('code', 'worker_died', 'message', 'The worker died while it was at it, each time.')
WHERE status = 'running' AND lease_until < now() AND attempt >= attempts AND kind = ANY ($1::text[])
RETURNING id, org_id, kind, key, payload::text, attempt, attempts

-- name: renew_job
UPDATE jobs SET lease_until = now() + make_interval(secs => $3)
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING true

-- name: progress_job
UPDATE jobs SET progress = $3::text::jsonb, lease_until = now() + make_interval(secs => $4)
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING true

-- name: finish_job
UPDATE jobs SET status = 'succeeded', finished_at = now(), lease_until = NULL, error = NULL
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING true

-- name: fail_job
UPDATE jobs SET status = 'failed', finished_at = now(), lease_until = NULL, error = $3::text::jsonb
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING true

-- name: requeue_job
-- $5: it was not the job's fault, so the attempt does not count
UPDATE jobs
SET status = 'queued', lease_until = NULL, worker = NULL, error = $3::text::jsonb,
    not_before = now() + make_interval(secs => $4), attempt = attempt - CASE WHEN $5 THEN 1 ELSE 0 END
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING true

-- name: cancel_jobs
UPDATE jobs SET status = 'cancelled', finished_at = now(), lease_until = NULL
WHERE kind = $1 AND key = $2 AND finished_at IS NULL
RETURNING id

-- name: cancel_jobs_of_user
-- Open jobs of org $1 whose key is a run of user $2.
UPDATE jobs j SET status = 'cancelled', finished_at = now(), lease_until = NULL, progress = NULL
FROM runs r
WHERE j.org_id = $1 AND j.finished_at IS NULL AND r.id = j.key AND r.org_id = $1 AND r.user_id = $2
RETURNING j.id

-- name: get_job
SELECT id, org_id, kind, key, payload::text, status, attempt, attempts, progress::text, error::text, created_at,
       not_before, finished_at
FROM jobs WHERE kind = $1 AND key = $2 ORDER BY created_at DESC, id DESC LIMIT 1

-- name: forget_jobs
WITH old AS (SELECT id FROM jobs WHERE finished_at < now() - make_interval(secs => $1) ORDER BY finished_at LIMIT $2)
DELETE FROM jobs USING old WHERE jobs.id = old.id
