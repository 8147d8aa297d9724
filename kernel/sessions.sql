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
-- A run's threads are its id and, for its sub-agents, `<its id>/…`: bytewise, all that is below `<its id>0`.
-- name: delete_checkpoint_writes
DELETE FROM checkpoint_writes w USING runs r
WHERE r.org_id = $1 AND r.session_id = $2 AND w.org_id = $1 AND w.thread_id >= r.id AND w.thread_id < r.id || '0';

-- name: delete_checkpoints
DELETE FROM checkpoints c USING runs r
WHERE r.org_id = $1 AND r.session_id = $2 AND c.org_id = $1 AND c.thread_id >= r.id AND c.thread_id < r.id || '0';

-- name: delete
DELETE FROM sessions WHERE org_id = $1 AND id = $2;
