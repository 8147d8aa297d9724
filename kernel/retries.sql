-- name: retry
SELECT * FROM retry_run($1, $2, $3, $4, $5, $6);

-- name: retry_with_secrets
-- The same, and the new run's own secrets $7, sealed with key $8.
WITH taken AS MATERIALIZED (
    SELECT * FROM retry_run($1, $2, $3, $4, $5, $6)
), kept AS (
    INSERT INTO run_secrets (org_id, run_id, sealed, key_id) SELECT $1, $4, $7, $8 FROM taken WHERE outcome = 'queued'
)
SELECT * FROM taken;
