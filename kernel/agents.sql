-- Agents and their versions.

-- name: add
INSERT INTO agents (id, org_id, name, max_running) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id;

-- name: add_version
WITH version AS (
    INSERT INTO agent_versions (agent_id, version, org_id, config)
    SELECT id, version, org_id, $3::json FROM agents WHERE org_id = $1 AND id = $2
    RETURNING agent_id, version, config
)
SELECT a.id, a.org_id, v.version, v.config, a.created_at, a.updated_at
FROM version v JOIN agents a ON a.id = v.agent_id;

-- name: get
SELECT a.id, a.org_id, a.version, v.config, a.created_at, a.updated_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.version
WHERE a.org_id = $1 AND a.id = $2 AND a.deleted_at IS NULL;

-- name: lock
SELECT FROM agents WHERE org_id = $1 AND id = $2 FOR NO KEY UPDATE;

-- name: list
SELECT a.id, a.org_id, a.version, v.config, a.created_at, a.updated_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.version
WHERE a.org_id = $1 AND a.deleted_at IS NULL AND ($2::text IS NULL OR a.id < $2)
ORDER BY a.id DESC
LIMIT $3;

-- name: advance
UPDATE agents SET name = $3, max_running = $4, version = version + 1, updated_at = now() WHERE org_id = $1 AND id = $2;

-- name: delete
UPDATE agents SET deleted_at = now()
WHERE org_id = $1 AND id = $2 AND deleted_at IS NULL
  AND NOT EXISTS (SELECT FROM orgs WHERE id = $1 AND default_agent_id = $2)
RETURNING id;

-- name: get_version
SELECT a.id, a.org_id, v.version, v.config, a.created_at, v.created_at AS updated_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id
WHERE a.org_id = $1 AND a.id = $2 AND v.version = $3;

-- name: list_versions
SELECT a.id, a.org_id, v.version, v.config, a.created_at, v.created_at AS updated_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id
WHERE a.org_id = $1 AND a.id = $2 AND ($3::integer IS NULL OR v.version < $3)
ORDER BY v.version DESC
LIMIT $4;

-- name: referred
-- Agents $2 at versions $3; NULL is the newest of one that is not deleted.
SELECT a.id, w.version AS asked, v.version, v.config
FROM unnest($2::text[], $3::integer[]) AS w (id, version)
JOIN agents a ON a.org_id = $1 AND a.id = w.id AND (w.version IS NOT NULL OR a.deleted_at IS NULL)
JOIN agent_versions v ON v.agent_id = a.id AND v.version = coalesce(w.version, a.version);
