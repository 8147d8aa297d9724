-- Skills of orgs and their versions.

-- name: add
INSERT INTO skills (id, org_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id;

-- name: add_version
WITH version AS (
    INSERT INTO skill_versions (skill_id, version, org_id, config, files)
    SELECT id, version, org_id, $3::json, $4::json FROM skills WHERE org_id = $1 AND id = $2
    RETURNING skill_id, version, config, files
)
SELECT s.id, s.org_id, s.name, v.version, v.config, v.files, s.created_at, s.updated_at
FROM version v JOIN skills s ON s.id = v.skill_id;

-- name: get
SELECT s.id, s.org_id, s.name, s.version, v.config, v.files, s.created_at, s.updated_at
FROM skills s JOIN skill_versions v ON v.skill_id = s.id AND v.version = s.version
WHERE s.org_id = $1 AND s.id = $2 AND s.deleted_at IS NULL;

-- name: named
SELECT id FROM skills WHERE org_id = $1 AND name = $2 AND deleted_at IS NULL;

-- name: lock
SELECT FROM skills WHERE org_id = $1 AND id = $2 FOR NO KEY UPDATE;

-- name: list
SELECT s.id, s.org_id, s.name, s.version, v.config->>'description' AS description, v.config->'tools' AS tools,
       ARRAY(SELECT json_object_keys(v.files)) AS paths, s.created_at, s.updated_at
FROM skills s JOIN skill_versions v ON v.skill_id = s.id AND v.version = s.version
WHERE s.org_id = $1 AND s.deleted_at IS NULL AND ($2::text IS NULL OR s.id < $2)
ORDER BY s.id DESC
LIMIT $3;

-- name: advance
UPDATE skills SET version = version + 1, updated_at = now() WHERE org_id = $1 AND id = $2;

-- name: delete
UPDATE skills SET deleted_at = now() WHERE org_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING id;

-- name: get_version
SELECT s.id, s.org_id, s.name, v.version, v.config, v.files, s.created_at, v.created_at AS updated_at
FROM skills s JOIN skill_versions v ON v.skill_id = s.id
WHERE s.org_id = $1 AND s.id = $2 AND v.version = $3;

-- name: list_versions
SELECT s.id, s.org_id, s.name, v.version, v.config->>'description' AS description, v.config->'tools' AS tools,
       ARRAY(SELECT json_object_keys(v.files)) AS paths, s.created_at, v.created_at AS updated_at
FROM skills s JOIN skill_versions v ON v.skill_id = s.id
WHERE s.org_id = $1 AND s.id = $2 AND ($3::integer IS NULL OR v.version < $3)
ORDER BY v.version DESC
LIMIT $4;

-- name: of_run
-- What was there when the run was made: the same on every attempt, whatever has been changed or deleted since.
SELECT DISTINCT ON (s.name) s.id, s.name, v.version, v.config->>'description' AS description,
       v.config->'tools' AS tools, v.config->'allowed_tools' AS allowed_tools,
       v.config->>'compatibility' AS compatibility, v.config->>'instructions' <> '' AS has_instructions,
       ARRAY(SELECT json_object_keys(v.files)) AS paths
FROM runs r
JOIN skills s ON s.org_id = r.org_id AND s.name = ANY($3::text[])
    AND (s.deleted_at IS NULL OR s.deleted_at > r.created_at)
JOIN skill_versions v ON v.skill_id = s.id AND v.created_at <= r.created_at
WHERE r.org_id = $1 AND r.id = $2
ORDER BY s.name, v.created_at DESC;

-- name: instructions
SELECT config->>'instructions' FROM skill_versions WHERE org_id = $1 AND skill_id = $2 AND version = $3;

-- name: file
SELECT files->>$4 FROM skill_versions WHERE org_id = $1 AND skill_id = $2 AND version = $3;
