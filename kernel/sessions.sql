-- Sessions: conversations, each the owner of one event log.

-- name: add
INSERT INTO sessions (id, org_id, user_id, agent_id, title, metadata)
SELECT $2, $1, $3, $4, $5, $6::json
WHERE $4::text IS NULL
   OR EXISTS (SELECT FROM agents WHERE org_id = $1 AND id = $4 AND deleted_at IS NULL)
RETURNING id, org_id, user_id, agent_id, title, metadata, last_seq, head_run_id, created_at, updated_at;

-- name: get
SELECT id, org_id, user_id, agent_id, title, metadata, last_seq, head_run_id, created_at, updated_at
FROM sessions WHERE org_id = $1 AND id = $2;

-- name: list
SELECT id, org_id, user_id, agent_id, title, metadata, last_seq, head_run_id, created_at, updated_at
FROM sessions WHERE org_id = $1 AND ($2::text IS NULL OR id < $2)
ORDER BY id DESC
LIMIT $3;

-- name: change
UPDATE sessions SET
    title = CASE WHEN $3 THEN $4 ELSE title END,
    metadata = CASE WHEN $5 THEN $6::json ELSE metadata END,
    agent_id = CASE WHEN $7 THEN $8 ELSE agent_id END,
    updated_at = now()
WHERE org_id = $1 AND id = $2
  AND ($8::text IS NULL OR EXISTS (SELECT FROM agents WHERE org_id = $1 AND id = $8 AND deleted_at IS NULL))
RETURNING id, org_id, user_id, agent_id, title, metadata, last_seq, head_run_id, created_at, updated_at;

-- name: lock
SELECT head_run_id FROM sessions WHERE org_id = $1 AND id = $2 FOR UPDATE;

-- Runs, messages, steps and events go with the session's row; checkpoints hang on nothing.
-- name: delete_checkpoint_writes
DELETE FROM checkpoint_writes WHERE org_id = $1 AND thread_id IN (
    SELECT thread_id FROM checkpoints WHERE org_id = $1 AND run_id IN (
        SELECT id FROM runs WHERE org_id = $1 AND session_id = $2));

-- name: delete_checkpoints
DELETE FROM checkpoints WHERE org_id = $1 AND run_id IN (
    SELECT id FROM runs WHERE org_id = $1 AND session_id = $2);

-- name: delete
DELETE FROM sessions WHERE org_id = $1 AND id = $2;
