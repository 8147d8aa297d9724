-- Runs: taken in, looked at, cancelled.

-- name: submit
SELECT * FROM submit_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: submit_with_secrets
-- The same, and the run's own secrets $16, sealed with key $17.
WITH taken AS MATERIALIZED (
    SELECT * FROM submit_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
), kept AS (
    INSERT INTO run_secrets (org_id, run_id, sealed, key_id) SELECT $1, $5, $16, $17 FROM taken WHERE outcome = 'queued'
)
SELECT * FROM taken;

-- name: get
SELECT id, org_id, session_id, turn, agent_id, agent_version, workflow, status, attempt, user_id, metadata,
       finish_reason, usage, error, first_seq, created_at, started_at, finished_at, cancel_requested_at, pause_requested_at, deadline_at, priority,
       retry_of
FROM runs WHERE org_id = $1 AND id = $2;

-- name: list
SELECT id, org_id, session_id, turn, agent_id, agent_version, workflow, status, attempt, user_id, metadata,
       finish_reason, usage, error, first_seq, created_at, started_at, finished_at, cancel_requested_at, pause_requested_at, deadline_at, priority,
       retry_of
FROM runs
WHERE org_id = $1
  AND ($2::text IS NULL OR id < $2)
  AND ($3::text IS NULL OR status = $3)
  AND ($4::text IS NULL OR session_id = $4)
  AND ($5::text IS NULL OR agent_id = $5)
ORDER BY id DESC
LIMIT $6;

-- name: cancel
SELECT * FROM cancel_run($1, $2);

-- name: pause
SELECT pause_run($1, $2);

-- name: resume
SELECT resume_run($1, $2);

-- name: last_message
SELECT m.content, coalesce(r.request -> 'response_schema', v.config -> 'response_schema') AS response_schema
FROM messages m
JOIN runs r ON r.id = m.run_id
LEFT JOIN agent_versions v ON v.agent_id = r.agent_id AND v.version = r.agent_version
WHERE m.org_id = $1 AND m.run_id = $2 AND m.path = '' AND m.role = 'assistant' AND m.tool_calls IS NULL
ORDER BY m.position DESC LIMIT 1;
