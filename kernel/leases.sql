-- Leases: who runs what, until when. Only the database's clock counts.

-- name: claim
-- Up to $2 runs for worker $1, see the migration on fair claims.
SELECT c.*, coalesce((SELECT w.version FROM session_windows w
                      WHERE w.session_id = c.session_id AND w.org_id = c.org_id), 0) AS window_version
FROM claim_runs($1, $2, $3, $4, $5, $6, $7, $8) AS c;

-- name: left_behind
-- What earlier owners of run $1 (org $2, session $3, turn $4, log from $5 on) have committed. To be asked under the new
-- epoch: only then can nothing be added any more.
SELECT coalesce((SELECT json_object_agg(begun.id, begun.path)
                 FROM (SELECT e.data ->> 'message_id' AS id, coalesce(min(e.data ->> 'path'), '') AS path FROM events e
                       WHERE e.session_id = $3 AND e.seq >= $5 AND e.run_id = $1
                         AND e.type IN ('message_chunk', 'message', 'message_discarded')
                       GROUP BY 1 HAVING bool_and(e.type = 'message_chunk') ORDER BY min(e.seq)) AS begun),
                '{}') AS unfinished,
       coalesce((SELECT json_object_agg(of.path, of.spent)
                 FROM (SELECT coalesce(u.data ->> 'path', '') AS path,
                              json_build_array(count(*) FILTER (WHERE u.data ->> 'purpose' IS NULL),
                                               sum((u.data ->> 'input_tokens')::bigint),
                                               sum((u.data ->> 'output_tokens')::bigint),
                                               sum((u.data ->> 'cost')::double precision)) AS spent
                       FROM events u
                       WHERE u.session_id = $3 AND u.seq >= $5 AND u.run_id = $1 AND u.type = 'usage'
                       GROUP BY 1) AS of),
                '{}') AS spent,
       -- of work: what passed before an owner came, or somebody decided, was none
       (SELECT coalesce(sum(extract(epoch FROM gap.at - gap.before))
                            FILTER (WHERE gap.type NOT IN ('run_started', 'run_resumed', 'approval_resolved')), 0)
        FROM (SELECT w.type, w.at, lag(w.at) OVER (ORDER BY w.seq) AS before FROM events w
              WHERE w.session_id = $3 AND w.seq >= $5 AND w.run_id = $1) AS gap) AS worked_seconds,
       (SELECT json_agg(json_build_object('path', m.path, 'position', m.position, 'id', m.id, 'role', m.role,
                            'content', m.content, 'tool_calls', m.tool_calls, 'tool_call_id', m.tool_call_id)
                        ORDER BY m.path, m.position)
        FROM messages m WHERE m.org_id = $2 AND m.session_id = $3 AND m.turn = $4) AS messages,
       (SELECT json_agg(json_build_object('step_id', f.step_id, 'call_id', f.call_id, 'path', f.path,
                            'position', f.position, 'tool', f.tool, 'effect', f.effect, 'status', f.status,
                            'inherited', f.inherited))
        FROM effects f WHERE f.org_id = $2 AND f.run_id = $1) AS effects,
       (SELECT json_agg(json_build_object('approval_id', a.id, 'step_id', a.step_id, 'call_id', a.call_id,
                            'kind', a.kind, 'status', a.status, 'arguments', CASE a.kind WHEN 'limit' THEN coalesce(a.edited, a.arguments) ELSE a.edited END, 'answer', a.answer,
                            'error', a.error, 'comment', a.comment, 'by', a.decided_by, 'on_expiry', a.on_expiry))
        FROM approvals a WHERE a.org_id = $2 AND a.run_id = $1) AS approvals,
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
RETURNING r.id;

-- name: requests
-- What callers ask of the owner of runs $1.
SELECT id, cancel_requested_at IS NOT NULL AS cancel FROM runs
WHERE id = ANY ($1::text[]) AND (cancel_requested_at IS NOT NULL OR pause_requested_at IS NOT NULL);

-- name: end_overdue
SELECT * FROM end_overdue_runs($1, $2);

-- name: hand_back
-- Gives runs $1 under epochs $2 back to the queue because of $3. Their next claim charges no attempt.
WITH mine AS (
    SELECT r.id, r.session_id FROM unnest($1::text[], $2::integer[]) AS m (id, epoch)
    JOIN runs r ON r.id = m.id AND r.epoch = m.epoch AND r.status = 'running'
    JOIN sessions s ON s.id = r.session_id
    ORDER BY r.session_id FOR NO KEY UPDATE OF s, r
), unfenced AS (
    UPDATE sessions s SET head_epoch = 0, head_batch = 0 FROM mine WHERE s.id = mine.session_id
)
UPDATE runs r SET status = 'queued', worker = NULL, lease_until = NULL, left_because = $3
FROM mine WHERE r.id = mine.id
RETURNING r.id;

-- name: beat
INSERT INTO workers (id, host, pid, slots, running, figures) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO UPDATE
SET running = excluded.running, slots = excluded.slots, figures = excluded.figures, seen_at = now();

-- name: hold_name
-- A lock that lives as long as this connection: by it others know that worker $1 is there.
SELECT pg_try_advisory_lock(hashtextextended('longhaul worker ' || $1, 0));

-- name: missing
-- Workers other than $1 that were not seen for $2 seconds and whose connection is gone.
WITH silent AS MATERIALIZED (
    SELECT id FROM workers WHERE id <> $1 AND seen_at < clock_timestamp() - make_interval(secs => $2)
)
SELECT id FROM silent WHERE pg_try_advisory_xact_lock(hashtextextended('longhaul worker ' || id, 0));

-- name: bury
-- Workers $1 have died, unless they were seen within $2 seconds or are back: their leases end now. Nobody may have had
-- the time to come back within $3 seconds of the server's start.
WITH silent AS MATERIALIZED (
    SELECT id FROM workers
    WHERE id = ANY ($1::text[]) AND seen_at < clock_timestamp() - make_interval(secs => $2)
      AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => $3)
), dead AS MATERIALIZED (
    SELECT id FROM silent WHERE pg_try_advisory_xact_lock(hashtextextended('longhaul worker ' || id, 0))
), left_alone AS MATERIALIZED (
    SELECT r.id FROM runs r JOIN dead ON dead.id = r.worker
    WHERE r.status = 'running' ORDER BY r.session_id FOR NO KEY UPDATE OF r SKIP LOCKED
), ended AS (
    UPDATE runs r SET lease_until = least(r.lease_until, clock_timestamp()) FROM left_alone WHERE r.id = left_alone.id
    RETURNING r.id
), gone AS (
    DELETE FROM workers USING dead WHERE workers.id = dead.id RETURNING workers.id
)
SELECT array(SELECT id FROM gone) AS workers, (SELECT count(*) FROM ended) AS runs;

-- name: sign_off
DELETE FROM workers WHERE id = $1;
