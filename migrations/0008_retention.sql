-- Retention: what has been removed of runs that ended long ago, and how far back each session's log reaches.
--
-- The functions below are each one batch and one transaction. They try for the advisory lock p_key and do nothing
-- without it, and do not wait for their commit to reach the disk: what a crash undoes is done again. Rows are addressed
-- by their place (ctid), which is safe for what belongs to finished runs: nobody changes it. They are found in the order
-- of a primary key: so a limit never makes the planner prefer to read a table from its beginning.

-- Events up to the floor are gone, or on their way out: nobody is shown them any more. Who asks for them is told so.
ALTER TABLE sessions
    ADD COLUMN floor_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN floor_at timestamptz,
    ADD CONSTRAINT sessions_floor CHECK (floor_seq BETWEEN 0 AND last_seq),
    ADD CONSTRAINT sessions_floor_at CHECK ((floor_seq > 0) = (floor_at IS NOT NULL));

-- What is kept of a finished run: all of it; its log without chunks, and no checkpoints; or nothing but its record,
-- steps and messages (whatever else there may be of its log goes as soon as the session's floor can rise past it).
ALTER TABLE runs
    ADD COLUMN kept text NOT NULL DEFAULT 'whole',
    ADD CONSTRAINT runs_kept CHECK (kept IN ('whole', 'slim', 'record')),
    ADD CONSTRAINT runs_kept_while_unfinished CHECK (kept = 'whole' OR finished_at IS NOT NULL);
-- Each holds what its policy has still to deal with, the oldest first.
CREATE INDEX runs_whole ON runs (finished_at) WHERE finished_at IS NOT NULL AND kept = 'whole';
CREATE INDEX runs_slim ON runs (finished_at) WHERE finished_at IS NOT NULL AND kept = 'slim';

-- A run's messages go with it; its answer is looked up by it.
CREATE INDEX messages_run ON messages (run_id);

-- Of the oldest p_runs runs that ended p_age seconds ago or more: removes up to p_rows of their chunks, pending writes
-- and checkpoints. The text of a finished run's message is in its `message` event, or it was void. Takes no lock that a
-- session's writer needs. Returns what it has removed, and how many runs are slim by that.
CREATE FUNCTION slim_runs(p_key bigint, p_age double precision, p_runs integer, p_rows integer,
    OUT runs integer, OUT chunks integer, OUT checkpoints integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    r record;
    v_left integer := p_rows;
    v_count integer;
BEGIN
    runs := 0;
    chunks := 0;
    checkpoints := 0;
    IF NOT pg_try_advisory_xact_lock(p_key) THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR r IN
        SELECT id, org_id, session_id, first_seq FROM runs
        WHERE kept = 'whole' AND finished_at < now() - make_interval(secs => p_age)
        ORDER BY finished_at LIMIT p_runs FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        DELETE FROM events WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM events
            WHERE session_id = r.session_id AND seq > r.first_seq
                  AND seq < (SELECT seq FROM events WHERE run_id = r.id AND type = 'done')
                  AND run_id = r.id AND type = 'message_chunk'
            ORDER BY seq LIMIT v_left));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        chunks := chunks + v_count;
        v_left := v_left - v_count;
        DELETE FROM checkpoint_writes WHERE ctid = ANY (ARRAY(  -- of the threads <run id> and <run id>/<path>
            SELECT ctid FROM checkpoint_writes
            WHERE org_id = r.org_id AND thread_id >= r.id AND thread_id < r.id || '0'
            ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT v_left));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        checkpoints := checkpoints + v_count;
        v_left := v_left - v_count;
        DELETE FROM checkpoints WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM checkpoints
            WHERE org_id = r.org_id AND thread_id >= r.id AND thread_id < r.id || '0'
            ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT v_left));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        checkpoints := checkpoints + v_count;
        v_left := v_left - v_count;
        EXIT WHEN v_left <= 0;
        UPDATE runs SET kept = 'slim' WHERE id = r.id;
        runs := runs + 1;
    END LOOP;
END $$;

-- Takes the oldest p_runs slim runs that ended p_age seconds ago or more, and raises the floors of their sessions to
-- just below the first event of the first run that is younger or unfinished. Returns those runs and their sessions, but
-- for sessions that somebody has locked right now.
--
-- The rows are locked before they are looked at: a run that was submitted meanwhile must not end up below the floor. A
-- single statement would not see it, and two would hold the locks for as long as their client takes to send the second.
CREATE FUNCTION raise_floors(p_key bigint, p_age double precision, p_runs integer,
    OUT run_ids text[], OUT session_ids text[])
LANGUAGE plpgsql AS $$
DECLARE
    v_cutoff timestamptz := now() - make_interval(secs => p_age);
BEGIN
    IF NOT pg_try_advisory_xact_lock(p_key) THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT array_agg(r.id), array_agg(DISTINCT r.session_id) INTO run_ids, session_ids
    FROM (SELECT id, session_id FROM runs WHERE kept = 'slim' AND finished_at < v_cutoff
          ORDER BY finished_at LIMIT p_runs) AS r;
    SELECT array_agg(s.id) INTO session_ids
    FROM (SELECT id FROM sessions WHERE id = ANY (session_ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED) AS s;
    SELECT array_agg(r.id) INTO run_ids FROM runs r WHERE r.id = ANY (run_ids) AND r.session_id = ANY (session_ids);
    UPDATE sessions s SET floor_seq = f.floor, floor_at = clock_timestamp()
    FROM (SELECT t.id, coalesce((SELECT r.first_seq - 1 FROM runs r
                                 WHERE r.session_id = t.id AND (r.finished_at IS NULL OR r.finished_at >= v_cutoff)
                                 ORDER BY r.turn LIMIT 1), t.last_seq) AS floor
          FROM sessions t WHERE t.id = ANY (session_ids)) AS f
    WHERE s.id = f.id AND s.floor_seq < f.floor;
END $$;

-- Of those of p_sessions in which nothing has happened for p_age seconds: removes up to p_rows of all that hangs on
-- them, the log first, then turn by turn, and then the sessions. One to which somebody comes back in the middle of it
-- keeps the rest. Returns what it has removed, sessions included, and how many of them there were.
CREATE FUNCTION empty_sessions(p_key bigint, p_age double precision, p_sessions text[], p_rows integer,
    OUT total integer, OUT sessions integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s record;
    r record;
    v_count integer;
BEGIN
    total := 0;
    sessions := 0;
    IF NOT pg_try_advisory_xact_lock(p_key) THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR s IN
        SELECT id FROM sessions
        WHERE id = ANY (p_sessions) AND head_run_id IS NULL AND updated_at < now() - make_interval(secs => p_age)
        ORDER BY id FOR UPDATE SKIP LOCKED
    LOOP
        UPDATE sessions SET floor_seq = last_seq, floor_at = clock_timestamp() WHERE id = s.id AND floor_seq < last_seq;
        DELETE FROM events WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM events WHERE session_id = s.id ORDER BY seq LIMIT p_rows - total));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        total := total + v_count;
        FOR r IN SELECT id, org_id, turn FROM runs WHERE session_id = s.id ORDER BY turn LOOP
            EXIT WHEN total >= p_rows;
            DELETE FROM checkpoint_writes WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM checkpoint_writes
                WHERE org_id = r.org_id AND thread_id >= r.id AND thread_id < r.id || '0'
                ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT p_rows - total));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            total := total + v_count;
            DELETE FROM checkpoints WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM checkpoints
                WHERE org_id = r.org_id AND thread_id >= r.id AND thread_id < r.id || '0'
                ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT p_rows - total));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            total := total + v_count;
            DELETE FROM effects WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM effects WHERE run_id = r.id ORDER BY step_id LIMIT p_rows - total));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            total := total + v_count;
            DELETE FROM steps WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM steps WHERE run_id = r.id ORDER BY step_id LIMIT p_rows - total));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            total := total + v_count;
            DELETE FROM messages WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM messages WHERE session_id = s.id AND turn = r.turn
                ORDER BY path, position LIMIT p_rows - total));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            total := total + v_count;
            EXIT WHEN total >= p_rows;
            DELETE FROM runs WHERE id = r.id;
            total := total + 1;
        END LOOP;
        EXIT WHEN total >= p_rows;
        DELETE FROM sessions WHERE id = s.id;
        sessions := sessions + 1;
        total := total + 1;
    END LOOP;
END $$;
