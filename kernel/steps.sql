-- name: list
SELECT run_id, step_id, path, state, epoch, started_at, finished_at
FROM steps
WHERE org_id = $1 AND run_id = $2
  AND ($3::timestamptz IS NULL OR (started_at, step_id) > ($3, $4))
ORDER BY started_at, step_id
LIMIT $5;
