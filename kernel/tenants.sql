-- Orgs and their API keys.

-- name: add_org
INSERT INTO orgs (id, name) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING id;

-- name: org_by_name
SELECT id FROM orgs WHERE name = $1;

-- name: set_default_agent
UPDATE orgs SET default_agent_id = $2 WHERE id = $1;

-- name: org_exists
SELECT EXISTS (SELECT FROM orgs WHERE id = $1);

-- name: add_key
INSERT INTO api_keys (id, org_id, name, hash, user_id, scopes, expires_at, roles)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id, org_id, name, user_id, scopes, roles, created_at, expires_at, revoked_at;

-- name: list_keys
SELECT id, org_id, name, user_id, scopes, roles, created_at, expires_at, revoked_at
FROM api_keys WHERE org_id = $1 ORDER BY id;

-- name: revoke_key
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE org_id = $1 AND id = $2
RETURNING id, org_id, name, user_id, scopes, roles, created_at, expires_at, revoked_at;

-- name: usable_key
SELECT id, org_id, user_id, scopes, roles, hash FROM api_keys
WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());
