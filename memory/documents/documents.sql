-- Documents; migrations/0021_documents.sql says what they are. $1 is the org wherever somebody asks.

-- name: announce
INSERT INTO loose_blobs (blob, due_at) VALUES ($1, now() + interval '1 hour')

-- name: claim_blob
DELETE FROM loose_blobs WHERE blob = $1 AND due_at > now() RETURNING true

-- name: forget_blobs
DELETE FROM loose_blobs WHERE blob = ANY ($1::text[])

-- name: lock
-- Uploads of an org are counted one after the other.
SELECT pg_advisory_xact_lock(1279545932, hashtext($1))

-- name: usage
SELECT (SELECT count(*) FROM documents WHERE org_id = $1 AND status <> 'deleting') AS documents,
       (SELECT coalesce(sum(size), 0)::bigint FROM document_versions WHERE org_id = $1) AS bytes

-- name: bytes_of
SELECT coalesce(sum(size), 0)::bigint FROM document_versions WHERE org_id = $1 AND document_id = $2

-- name: find
SELECT id FROM documents
WHERE org_id = $1 AND scope = $2 AND owner = $3 AND name = $4 AND status <> 'deleting' FOR UPDATE

-- name: add
INSERT INTO documents (id, org_id, scope, owner, name, format, media_type, size, sha256, user_id, metadata)
VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::json::jsonb)

-- name: replace
UPDATE documents
SET version = version + 1, format = $3, media_type = $4, size = $5, sha256 = $6, user_id = $7,
    metadata = coalesce($8::text::json::jsonb, metadata), status = 'queued', error = NULL, updated_at = now()
WHERE org_id = $1 AND id = $2
RETURNING version

-- name: add_version
INSERT INTO document_versions (org_id, document_id, version, format, media_type, size, sha256, blob, charset)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: drop_versions
-- All that are not served; of the others the bytes go too.
DELETE FROM document_versions v USING documents d
WHERE d.org_id = $1 AND d.id = $2 AND v.document_id = d.id AND v.version IS DISTINCT FROM d.served

-- name: hasten
-- A job that waits for another try has something new to do.
UPDATE jobs SET not_before = now(), attempt = 0
WHERE kind = 'document' AND key = $1 AND status = 'queued'

-- name: shown
-- $2: one of them, or NULL for a list of those before id $3, at most $4. The asker sees all of the org ($5), else what is
-- the org's, of user $6, agent $7 and session $8. $9: of this scope only.
SELECT d.id, d.org_id, d.scope, nullif(d.owner, '') AS owner, d.name, d.version, d.format, d.media_type, d.size, d.sha256,
       d.user_id, d.metadata::text, d.status, d.error::text, d.served, d.facts::text, d.passages, d.created_at,
       d.updated_at, j.status AS job_status, j.error::text AS job_error, j.progress::text AS job_progress, j.not_before
FROM documents d
LEFT JOIN LATERAL (SELECT status, error, progress, not_before FROM jobs
                   WHERE kind = 'document' AND key = d.id ORDER BY created_at DESC, id DESC LIMIT 1) AS j ON true
WHERE d.org_id = $1 AND d.status <> 'deleting'
      AND ($2::text IS NULL OR d.id = $2) AND ($3::text IS NULL OR d.id < $3)
      AND ($9::text IS NULL OR d.scope = $9)
      AND ($5 OR d.scope = 'org' OR d.scope = 'user' AND d.owner = $6::text OR d.scope = 'agent' AND d.owner = $7::text
           OR d.scope = 'session' AND d.owner = $8::text)
ORDER BY d.id DESC
LIMIT $4

-- name: bytes
-- What is downloaded: the version that is served, else the one that is coming.
SELECT v.blob, v.media_type, v.size, v.sha256, v.created_at, v.version
FROM documents d JOIN document_versions v ON v.document_id = d.id
WHERE d.org_id = $1 AND d.id = $2 AND d.status <> 'deleting'
ORDER BY v.version = d.served DESC NULLS LAST, v.version DESC
LIMIT 1

-- name: delete
UPDATE documents SET status = 'deleting', error = NULL, updated_at = now()
WHERE org_id = $1 AND id = $2 AND status <> 'deleting' RETURNING true

-- name: work
-- What there is to do for a document: remove it, or take in its newest version.
SELECT d.id, d.org_id, d.scope, nullif(d.owner, '') AS owner, d.name, d.user_id, d.status, d.served, d.version,
       v.blob, v.format, v.charset, v.size
FROM documents d LEFT JOIN document_versions v ON v.document_id = d.id AND v.version = d.version
WHERE d.id = $1

-- name: stage
UPDATE documents SET status = $3, updated_at = now()
WHERE id = $1 AND version = $2 AND status IN ('queued', 'parsing', 'embedding')
RETURNING true

-- name: serve
UPDATE documents
SET status = 'ready', served = version, passages = $3, facts = $4::text::json::jsonb, error = NULL, updated_at = now()
WHERE id = $1 AND version = $2 AND status IN ('queued', 'parsing', 'embedding')
RETURNING org_id

-- name: fail
UPDATE documents SET status = 'failed', error = $3::text::json::jsonb, updated_at = now()
WHERE id = $1 AND version = $2 AND status IN ('queued', 'parsing', 'embedding')
RETURNING org_id

-- name: settled
-- Whether there is nothing to do; if so, nobody can upload another version until the transaction is over.
SELECT status IN ('ready', 'failed') FROM documents WHERE id = $1 FOR UPDATE

-- name: remove
DELETE FROM documents WHERE id = $1 AND status = 'deleting'

-- name: move
-- Passages that stand elsewhere in the document now: neither their words nor their vectors change with that.
UPDATE memories m SET place = g.place, page = g.page, source = g.source, updated_at = now()
FROM unnest($3::text[], $4::integer[], $5::integer[], $6::text[]) AS g (id, place, page, source)
WHERE m.id = g.id AND m.org_id = $1 AND m.document_id = $2
RETURNING m.id

-- name: passages
-- Of document $2, after place $3, at most $4. Those of a version that is being taken in are among them.
SELECT id, text, context, place, page, source, created_at FROM memories
WHERE document_id = $2 AND org_id = $1 AND ended_at IS NULL AND place > $3
ORDER BY place LIMIT $4

-- name: of_user
SELECT id FROM documents WHERE org_id = $1 AND scope = 'user' AND owner = $2 AND status <> 'deleting'
