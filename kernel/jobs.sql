-- Background jobs. Times are the database's.

-- name: add_job
INSERT INTO jobs (id, org_id, kind, key, payload, attempts, not_before)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, now() + make_interval(secs => $7))
ON CONFLICT (kind, key) WHERE finished_at IS NULL DO NOTHING
RETURNING id

-- name: open_job
SELECT id FROM jobs WHERE kind = $1 AND key = $2 AND finished_at IS NULL

-- name: take_job
-- One whose worker has died, if another attempt is left. Else one that is due: of the org with the fewest that are being
-- done, and of these of the one whose turn is next; a hundred of them are looked at. Both walks from org to org stop there,
-- and are not begun where nothing is due.
WITH RECURSIVE turn AS (
    SELECT coalesce((SELECT coalesce(org_id, '') FROM jobs WHERE taken_at IS NOT NULL ORDER BY taken_at DESC LIMIT 1), '')
           AS org
), later (org) AS (
    SELECT (SELECT coalesce(org_id, '') FROM jobs
            WHERE status = 'queued' AND coalesce(org_id, '') > turn.org ORDER BY coalesce(org_id, '') LIMIT 1)
    FROM turn WHERE EXISTS (SELECT FROM jobs WHERE status = 'queued' AND not_before <= now())
    UNION ALL
    SELECT (SELECT coalesce(org_id, '') FROM jobs
            WHERE status = 'queued' AND coalesce(org_id, '') > later.org ORDER BY coalesce(org_id, '') LIMIT 1)
    FROM later WHERE later.org IS NOT NULL
), earlier (org) AS (
    SELECT (SELECT coalesce(org_id, '') FROM jobs WHERE status = 'queued' ORDER BY coalesce(org_id, '') LIMIT 1)
    WHERE EXISTS (SELECT FROM jobs WHERE status = 'queued' AND not_before <= now())
    UNION ALL
    SELECT (SELECT coalesce(org_id, '') FROM jobs
            WHERE status = 'queued' AND coalesce(org_id, '') > earlier.org ORDER BY coalesce(org_id, '') LIMIT 1)
    FROM earlier WHERE earlier.org <= (SELECT org FROM turn)
), running AS MATERIALIZED (
    SELECT coalesce(org_id, '') AS org, count(*) AS jobs FROM jobs WHERE status = 'running' GROUP BY 1
), heads AS (
    SELECT o.org, row_number() OVER () AS place
    FROM (SELECT org FROM later UNION ALL SELECT org FROM earlier WHERE org <= (SELECT org FROM turn)) AS o
    CROSS JOIN LATERAL (SELECT FROM jobs
                        WHERE status = 'queued' AND coalesce(org_id, '') = o.org AND not_before <= now()
                              AND kind = ANY ($3::text[])
                        LIMIT 1) AS due
    LIMIT 100
), next AS (
    SELECT h.org, coalesce(r.jobs, 0) AS running, h.place FROM heads h LEFT JOIN running r USING (org)
    ORDER BY 2, 3 LIMIT 8
), candidates AS MATERIALIZED (
    SELECT j.id, row_number() OVER (ORDER BY j.place, next.running, next.place) AS place
    FROM next
    CROSS JOIN LATERAL (SELECT id, row_number() OVER (ORDER BY not_before, id) AS place FROM jobs
                        WHERE status = 'queued' AND coalesce(org_id, '') = next.org AND not_before <= now()
                              AND kind = ANY ($3::text[])
                        ORDER BY not_before, id LIMIT 8) AS j
    UNION ALL
    (SELECT id, 0 FROM jobs
     WHERE status = 'running' AND lease_until < now() AND attempt < attempts AND kind = ANY ($3::text[])
     ORDER BY lease_until LIMIT 8)
)
UPDATE jobs
SET status = 'running', attempt = attempt + 1, worker = $1, lease_until = now() + make_interval(secs => $2),
    taken_at = clock_timestamp()
WHERE id = (SELECT j.id FROM candidates c JOIN jobs j USING (id)
            WHERE j.status = 'queued' AND j.not_before <= now()
                  OR j.status = 'running' AND j.lease_until < now() AND j.attempt < j.attempts
            ORDER BY c.place
            LIMIT 1
            FOR UPDATE OF j SKIP LOCKED)
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
