-- Sources: databases that an org's agents may ask.

-- name: add
INSERT INTO sources (id, org_id, name, description, secret, agent_ids, max_rows, timeout_seconds)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING
RETURNING *;

-- name: get
SELECT * FROM sources WHERE org_id = $1 AND id = $2;

-- name: get_for_update
SELECT * FROM sources WHERE org_id = $1 AND id = $2 FOR UPDATE;

-- name: change
UPDATE sources SET name = $3, description = $4, secret = $5, agent_ids = $6, max_rows = $7, timeout_seconds = $8,
                   updated_at = now()
WHERE org_id = $1 AND id = $2
RETURNING *;

-- name: list
SELECT * FROM sources WHERE org_id = $1 AND ($2::text IS NULL OR id < $2) ORDER BY id DESC LIMIT $3;

-- name: delete
DELETE FROM sources WHERE org_id = $1 AND id = $2 RETURNING id;

-- name: open_to
-- Those that agent $2 may ask.
SELECT * FROM sources WHERE org_id = $1 AND (agent_ids IS NULL OR $2 = ANY (agent_ids)) ORDER BY name LIMIT 100;
