-- Secrets: sealed by the time they come here.

-- name: put
SELECT created, created_at, updated_at FROM put_secret($1, $2, $3, $4, $5);

-- name: list
SELECT name, created_at, updated_at FROM secrets
WHERE org_id = $1 AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3;

-- name: delete
DELETE FROM secrets WHERE org_id = $1 AND name = $2 RETURNING true;

-- name: find
-- The secrets of run $2 if that is given, under no name, and those of org $1 that have the names $3.
SELECT NULL AS name, sealed, key_id FROM run_secrets WHERE org_id = $1 AND run_id = $2
UNION ALL
SELECT name, sealed, key_id FROM secrets WHERE org_id = $1 AND name = ANY ($3::text[]);
