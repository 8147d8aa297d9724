-- Files of sessions; migrations/0013_files.sql says how rows and blobs keep together.

-- name: begin_upload
-- Announces blob $3, and says how much the session holds.
WITH owner AS MATERIALIZED (
    SELECT id, org_id FROM sessions WHERE org_id = $1 AND id = $2 FOR KEY SHARE
), room AS (
    INSERT INTO workspaces (session_id, org_id) SELECT id, org_id FROM owner ON CONFLICT DO NOTHING
), announced AS (
    INSERT INTO loose_blobs (blob, due_at) SELECT $3, now() + interval '1 hour' FROM owner
)
SELECT coalesce(w.bytes, 0) AS bytes, coalesce(f.size, 0) AS replaced, f.content_type
FROM owner o
LEFT JOIN workspaces w ON w.session_id = o.id
LEFT JOIN files f ON f.session_id = o.id AND f.path = $4;

-- name: put
SELECT outcome, replaced, other FROM put_file($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: move
SELECT outcome, replaced, other FROM move_file($1, $2, $3, $4, $5, $6, $7, $8);

-- name: drop
SELECT outcome, replaced, other FROM drop_file($1, $2, $3, $4, $5, $6);

-- name: get
SELECT path, size, content_type, sha256, blob, user_id, run_id, created_at, updated_at
FROM files WHERE org_id = $1 AND session_id = $2 AND path = $3;

-- name: list
SELECT path, size, content_type, sha256, blob, user_id, run_id, created_at, updated_at
FROM files
WHERE org_id = $1 AND session_id = $2 AND path > $3 AND starts_with(path, $4)
ORDER BY path
LIMIT $5;

-- name: usage
SELECT files, bytes FROM workspaces WHERE org_id = $1 AND session_id = $2;

-- name: done_before
SELECT EXISTS (SELECT FROM file_calls WHERE org_id = $1 AND session_id = $2 AND key = $3);

-- name: due_blobs
SELECT blob FROM loose_blobs WHERE due_at <= now() ORDER BY due_at LIMIT $1;

-- name: forget_blobs
-- Also those that are not due yet, but only by who announced them or has just given them up.
DELETE FROM loose_blobs WHERE blob = ANY ($1::text[]);

-- name: forget_calls
-- Of runs that have ended nobody makes a call again.
DELETE FROM file_calls c USING runs r WHERE r.id = c.run_id AND r.finished_at IS NOT NULL;
