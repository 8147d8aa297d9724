-- What is removed, a batch at a time: each statement is one transaction. As the functions of the migrations do, those
-- that are written out here try for the advisory lock $1 and do not wait for the disk.

-- name: slim_runs
SELECT runs, chunks, checkpoints FROM slim_runs($1, $2, $3, $4);

-- name: raise_floors
SELECT coalesce(run_ids, '{}') AS runs, coalesce(session_ids, '{}') AS sessions FROM raise_floors($1, $2, $3);

-- name: forget_events
-- Up to $4 events below the floors of sessions $2. When that is all there is, of runs $3 nothing but the record is kept.
WITH alone AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock($1) AS yes, set_config('synchronous_commit', 'off', true)
), old AS MATERIALIZED (
    SELECT e.place FROM sessions s CROSS JOIN LATERAL (
        SELECT ctid AS place FROM events WHERE session_id = s.id AND seq <= s.floor_seq ORDER BY seq LIMIT $4) AS e
    WHERE (SELECT yes FROM alone) AND s.id = ANY ($2::text[])
    LIMIT $4
), gone AS (
    DELETE FROM events WHERE ctid = ANY (ARRAY(SELECT place FROM old))
), through AS (
    UPDATE runs SET kept = 'record'
    WHERE (SELECT yes FROM alone) AND id = ANY ($3::text[]) AND (SELECT count(*) FROM old) < $4
)
SELECT count(*) AS events FROM old;

-- name: idle_sessions
-- Looks at the next $3 sessions after id $2 that are old enough to have been idle for $1 seconds. Ids begin with the
-- time of their birth in milliseconds. So the last activity needs no index, which every run would have to keep.
WITH looked_at AS (
    SELECT id, head_run_id IS NULL AND updated_at < now() - make_interval(secs => $1) AS idle FROM sessions
    WHERE id > $2
      AND id < 'ses_' || lpad(to_hex((extract(epoch FROM now() - make_interval(secs => $1)) * 1000)::bigint), 12, '0')
    ORDER BY id LIMIT $3
)
SELECT count(*) AS looked_at, coalesce(max(id), '') AS last, coalesce(array_agg(id) FILTER (WHERE idle), '{}') AS idle
FROM looked_at;

-- name: empty_sessions
SELECT total, sessions FROM empty_sessions($1, $2, $3, $4);

-- name: forget_idempotency_keys
-- Up to $2 keys that are older than a day.
WITH alone AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock($1) AS yes, set_config('synchronous_commit', 'off', true)
), old AS MATERIALIZED (
    SELECT ctid AS place FROM idempotency_keys
    WHERE (SELECT yes FROM alone) AND created_at < now() - interval '24 hours' ORDER BY created_at LIMIT $2
), gone AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT place FROM old))
)
SELECT count(*) AS keys FROM old;

-- name: forget_audit
-- Up to $3 entries of the audit log that are older than $2 seconds. They are written in the order of their times, nearly.
WITH alone AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock($1) AS yes, set_config('synchronous_commit', 'off', true)
), old AS MATERIALIZED (
    SELECT id FROM (SELECT id, at FROM audit_log ORDER BY id LIMIT $3) AS oldest
    WHERE (SELECT yes FROM alone) AND at < now() - make_interval(secs => $2)
), gone AS (
    DELETE FROM audit_log WHERE id IN (SELECT id FROM old)
)
SELECT count(*) AS entries FROM old;

-- name: forget_dead_workers
DELETE FROM workers WHERE seen_at < now() - interval '1 hour';
