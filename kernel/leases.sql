-- Leases: who runs what, until when. Only the database's clock counts.

-- name: claim
-- Up to $2 runs for worker $1 under leases of $3 seconds: first those whose owner has died, then the queued
-- run with the smallest start tag. Rows that another worker or a caller holds right now are passed over, so
-- a claim never waits. Comes back with all that is needed to start.
WITH dead AS (
    SELECT r.id, r.session_id FROM runs r JOIN sessions s ON s.id = r.session_id
    WHERE r.status = 'running' AND r.lease_until < clock_timestamp()
      AND r.id <> ALL ($5::text[])  -- a worker that was paused still has these: it renews or loses them
    ORDER BY r.lease_until LIMIT $2 FOR NO KEY UPDATE OF r, s SKIP LOCKED
), queued AS (
    SELECT r.id, r.session_id FROM runs r JOIN sessions s ON s.id = r.session_id
    WHERE r.head AND r.status = 'queued'
    ORDER BY r.vtag, r.id LIMIT $2 FOR NO KEY UPDATE OF r, s SKIP LOCKED
), picked AS (
    SELECT id FROM (SELECT id, 0 AS rank FROM dead UNION ALL SELECT id, 1 FROM queued) AS both_kinds
    ORDER BY rank LIMIT $2
), claimed AS (
    UPDATE runs r
    SET status = 'running', worker = $1, epoch = r.epoch + 1, attempt = r.attempt + 1,
        lease_until = clock_timestamp() + make_interval(secs => $3),
        started_at = coalesce(r.started_at, clock_timestamp())
    FROM picked WHERE r.id = picked.id
    RETURNING r.*
), fenced AS (
    UPDATE sessions s SET head_epoch = c.epoch, head_batch = 0 FROM claimed c WHERE s.id = c.session_id
)
SELECT c.id, c.org_id, c.session_id, c.turn, c.agent_id, c.agent_version, c.workflow, c.user_id, c.request,
       c.epoch, c.attempt, c.first_seq, c.cancel_requested_at IS NOT NULL AS cancelled,
       extract(epoch FROM c.started_at - c.created_at)::double precision AS pickup_seconds,
       extract(epoch FROM clock_timestamp() - c.started_at)::double precision AS elapsed_seconds,
       v.config,
       (SELECT json_agg(json_build_object('role', m.role, 'content', m.content) ORDER BY m.turn, m.position)
        FROM (SELECT turn, position, role, content FROM messages
              WHERE session_id = c.session_id AND turn < c.turn AND path = ''
                AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
              ORDER BY turn DESC, position DESC LIMIT $4) AS m) AS history,
       (SELECT json_agg(json_build_object('path', m.path, 'position', m.position, 'id', m.id, 'role', m.role,
                            'content', m.content, 'tool_calls', m.tool_calls, 'tool_call_id', m.tool_call_id)
                        ORDER BY m.path, m.position)
        FROM messages m WHERE m.session_id = c.session_id AND m.turn = c.turn) AS messages
FROM claimed c JOIN agent_versions v ON v.agent_id = c.agent_id AND v.version = c.agent_version
ORDER BY c.vtag, c.id;

-- name: left_behind
-- What earlier owners of run $1 (org $2, session $3, turn $4, log from $5 on) have committed. To be asked under the new
-- epoch: only then can nothing be added any more.
SELECT coalesce((SELECT json_agg(DISTINCT e.data ->> 'message_id')
                 FROM events e
                 WHERE e.session_id = $3 AND e.seq >= $5 AND e.run_id = $1 AND e.type = 'message_chunk'
                   AND NOT EXISTS (SELECT 1 FROM events d
                                   WHERE d.session_id = $3 AND d.seq >= $5 AND d.run_id = $1
                                     AND d.type IN ('message', 'message_discarded')
                                     AND d.data ->> 'message_id' = e.data ->> 'message_id')), '[]') AS unfinished,
       (SELECT json_build_array(coalesce(sum((u.data ->> 'input_tokens')::bigint), 0),
                                coalesce(sum((u.data ->> 'output_tokens')::bigint), 0))
        FROM events u
        WHERE u.session_id = $3 AND u.seq >= $5 AND u.run_id = $1 AND u.type = 'usage') AS tokens,
       (SELECT json_agg(json_build_object('path', m.path, 'position', m.position, 'id', m.id, 'role', m.role,
                            'content', m.content, 'tool_calls', m.tool_calls, 'tool_call_id', m.tool_call_id)
                        ORDER BY m.path, m.position)
        FROM messages m WHERE m.org_id = $2 AND m.session_id = $3 AND m.turn = $4) AS messages,
       EXISTS (SELECT 1 FROM events e
               WHERE e.session_id = $3 AND e.seq >= $5 AND e.run_id = $1 AND e.type = 'run_started') AS announced;

-- name: renew
-- Extends the leases of runs $1 under epochs $2 by $3 seconds. A run that is missing in the answer is lost.
-- Locks in the order in which the journal does, by session.
WITH mine AS (
    SELECT r.id FROM unnest($1::text[], $2::integer[]) AS m (id, epoch)
    JOIN runs r ON r.id = m.id AND r.epoch = m.epoch AND r.status = 'running'
    ORDER BY r.session_id FOR NO KEY UPDATE OF r
)
UPDATE runs r SET lease_until = clock_timestamp() + make_interval(secs => $3)
FROM mine WHERE r.id = mine.id
RETURNING r.id, r.cancel_requested_at IS NOT NULL AS cancelled;

-- name: cancel_requests
SELECT id FROM runs WHERE id = ANY ($1::text[]) AND cancel_requested_at IS NOT NULL;

-- name: hand_back
-- Gives runs $1 under epochs $2 back to the queue, without charging an attempt.
WITH mine AS (
    SELECT r.id, r.session_id FROM unnest($1::text[], $2::integer[]) AS m (id, epoch)
    JOIN runs r ON r.id = m.id AND r.epoch = m.epoch AND r.status = 'running'
    JOIN sessions s ON s.id = r.session_id
    ORDER BY r.session_id FOR NO KEY UPDATE OF s, r
), unfenced AS (
    UPDATE sessions s SET head_epoch = 0, head_batch = 0 FROM mine WHERE s.id = mine.session_id
)
UPDATE runs r SET status = 'queued', worker = NULL, lease_until = NULL, attempt = r.attempt - 1
FROM mine WHERE r.id = mine.id
RETURNING r.id;

-- name: beat
INSERT INTO workers (id, host, pid, slots, running, figures) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO UPDATE
SET running = excluded.running, slots = excluded.slots, figures = excluded.figures, seen_at = now();

-- name: sign_off
DELETE FROM workers WHERE id = $1;
