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

-- name: history
-- The newest $4 messages of the conversation before turn $3 of session $2, oldest first.
SELECT json_agg(json_build_object('role', m.role, 'content', m.content) ORDER BY m.turn, m.position) AS history
FROM (SELECT turn, position, role, content FROM messages
      WHERE org_id = $1 AND session_id = $2 AND turn < $3 AND path = ''
        AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
      ORDER BY turn DESC, position DESC LIMIT $4) AS m;
