-- Checkpoints and the pending writes beside them. Every statement starts from the org.
-- Pending writes come in the order in which a step applies them: by path, task and place, bytewise.

-- name: get_checkpoint
SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_id, c.format, c.checkpoint, c.metadata,
       (SELECT array_agg(ROW (w.task_id, w.channel, w.format, w.value)
                         ORDER BY w.task_path COLLATE "C", w.task_id, w.idx)
        FROM checkpoint_writes w
        WHERE w.org_id = c.org_id AND w.thread_id = c.thread_id AND w.checkpoint_ns = c.checkpoint_ns
              AND w.checkpoint_id = c.checkpoint_id) AS writes
FROM checkpoints c
WHERE c.org_id = $1 AND c.thread_id = $2 AND c.checkpoint_ns = $3
      AND ($4::text IS NULL OR c.checkpoint_id = $4)
ORDER BY c.checkpoint_id DESC
LIMIT 1

-- name: list_checkpoints
-- One page, newest first. ($6, $7, $8) is where the page before it ended, or NULLs for the first page.
SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_id, c.format, c.checkpoint, c.metadata,
       (SELECT array_agg(ROW (w.task_id, w.channel, w.format, w.value)
                         ORDER BY w.task_path COLLATE "C", w.task_id, w.idx)
        FROM checkpoint_writes w
        WHERE w.org_id = c.org_id AND w.thread_id = c.thread_id AND w.checkpoint_ns = c.checkpoint_ns
              AND w.checkpoint_id = c.checkpoint_id) AS writes
FROM checkpoints c
WHERE c.org_id = $1
      AND ($2::text IS NULL OR c.thread_id = $2)
      AND ($3::text IS NULL OR c.checkpoint_ns = $3)
      AND ($4::text IS NULL OR c.checkpoint_id = $4)
      AND ($5::text IS NULL OR c.checkpoint_id < $5)
      AND ($6::text IS NULL OR (c.checkpoint_id, c.thread_id, c.checkpoint_ns) < ($6, $7, $8))
ORDER BY c.checkpoint_id DESC, c.thread_id DESC, c.checkpoint_ns DESC
LIMIT $9

-- name: put_checkpoint
INSERT INTO checkpoints (org_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, format, checkpoint, metadata,
                         run_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (org_id, thread_id, checkpoint_ns, checkpoint_id) DO UPDATE
SET format = excluded.format, checkpoint = excluded.checkpoint, metadata = excluded.metadata

-- name: put_writes
-- A task's output is taken once; an error, an interrupt or an answer replaces the one before it.
INSERT INTO checkpoint_writes (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel,
                               format, value)
SELECT $1, $2, $3, $4, $5, $6, w.idx, w.channel, $7, w.value
FROM unnest($8::integer[], $9::text[], $10::bytea[]) AS w (idx, channel, value)
ON CONFLICT (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE
SET channel = excluded.channel, format = excluded.format, value = excluded.value
WHERE excluded.idx < 0

-- name: delete_threads
WITH writes AS (DELETE FROM checkpoint_writes WHERE org_id = $1 AND thread_id = ANY ($2::text[]))
DELETE FROM checkpoints WHERE org_id = $1 AND thread_id = ANY ($2::text[])

-- name: delete_runs
WITH gone AS (
    DELETE FROM checkpoints WHERE org_id = $1 AND run_id = ANY ($2::text[])
    RETURNING thread_id, checkpoint_ns, checkpoint_id)
DELETE FROM checkpoint_writes w USING gone
WHERE w.org_id = $1 AND w.thread_id = gone.thread_id AND w.checkpoint_ns = gone.checkpoint_ns
      AND w.checkpoint_id = gone.checkpoint_id

-- name: copy_thread
WITH writes AS (
    INSERT INTO checkpoint_writes (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx,
                                   channel, format, value)
    SELECT org_id, $3, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, format, value
    FROM checkpoint_writes WHERE org_id = $1 AND thread_id = $2
    ON CONFLICT DO NOTHING)
INSERT INTO checkpoints (org_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, run_id, format, checkpoint,
                         metadata)
SELECT org_id, $3, checkpoint_ns, checkpoint_id, parent_id, run_id, format, checkpoint, metadata
FROM checkpoints WHERE org_id = $1 AND thread_id = $2
ON CONFLICT DO NOTHING

-- name: keep_latest
WITH latest AS (
    SELECT thread_id, checkpoint_ns, max(checkpoint_id) AS checkpoint_id
    FROM checkpoints WHERE org_id = $1 AND thread_id = ANY ($2::text[])
    GROUP BY thread_id, checkpoint_ns),
writes AS (
    DELETE FROM checkpoint_writes w USING latest
    WHERE w.org_id = $1 AND w.thread_id = latest.thread_id AND w.checkpoint_ns = latest.checkpoint_ns
          AND w.checkpoint_id < latest.checkpoint_id)
DELETE FROM checkpoints c USING latest
WHERE c.org_id = $1 AND c.thread_id = latest.thread_id AND c.checkpoint_ns = latest.checkpoint_ns
      AND c.checkpoint_id < latest.checkpoint_id
