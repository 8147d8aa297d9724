-- Taking runs in, ending and cancelling them. All of it works under the session row's lock, and in PL/pgSQL each
-- statement sees what was committed while it waited for that lock.

-- Start-time fair queuing (Goyal, Vin, Cheng 1996): a run's start tag is the later of the virtual time now
-- (the greatest tag in service) and the org's own last tag plus 1/weight. Claims take the smallest tag, so
-- ten thousand queued runs of one org don't stand before another org's first.
CREATE FUNCTION next_vtag(p_org text, p_weight double precision) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT greatest(
        coalesce((SELECT max(vtag) FROM runs WHERE status = 'running'),
                 (SELECT min(vtag) FROM runs WHERE head AND status = 'queued'), 0),
        (SELECT max(vtag) + 1 / p_weight FROM runs WHERE org_id = p_org AND status IN ('queued', 'running')))
$$;

-- Ends a run whose session row the caller has locked, and moves the session's head to the next queued run.
-- Returns that run's id, or NULL. Writes no event: the caller's log entry `done` goes with it.
CREATE FUNCTION end_run(p_run text, p_status text, p_reason text, p_usage json, p_error json, p_at timestamptz)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_session text;
    v_next text;
BEGIN
    UPDATE runs SET status = p_status, finish_reason = p_reason, usage = p_usage, error = p_error,
                    finished_at = p_at, head = false, worker = NULL, lease_until = NULL
    WHERE id = p_run AND finished_at IS NULL
    RETURNING session_id INTO v_session;
    IF v_session IS NULL THEN
        RAISE EXCEPTION 'run % is not there or has ended already', p_run USING ERRCODE = 'LH001';
    END IF;
    PERFORM 1 FROM sessions WHERE id = v_session AND head_run_id = p_run;
    IF NOT FOUND THEN
        RETURN NULL;  -- it never came to the head of the line
    END IF;
    SELECT id INTO v_next FROM runs WHERE session_id = v_session AND status = 'queued' ORDER BY turn LIMIT 1;
    UPDATE sessions SET head_run_id = v_next, head_epoch = 0, head_batch = 0, updated_at = p_at
    WHERE id = v_session;
    IF v_next IS NOT NULL THEN
        UPDATE runs SET head = true WHERE id = v_next;
    END IF;
    RETURN v_next;
END $$;

-- Appends one event as the API (not as a run's owner). The caller has locked the session row.
CREATE FUNCTION append_event(p_session text, p_org text, p_run text, p_type text, p_data json, p_at timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_seq bigint;
BEGIN
    UPDATE sessions SET last_seq = last_seq + 1 WHERE id = p_session RETURNING last_seq INTO v_seq;
    INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
    VALUES (p_session, v_seq, p_org, p_run, p_type, p_data, p_at);
    RETURN v_seq;
END $$;

-- Cancels one unfinished run; the caller has locked the session row. A queued or waiting run ends here, a
-- running one is asked to: its owner ends it. Returns 'cancelled', 'requested' or 'finished'.
CREATE FUNCTION cancel_locked_run(p_run text, p_at timestamptz) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r runs%ROWTYPE;
BEGIN
    SELECT * INTO r FROM runs WHERE id = p_run FOR NO KEY UPDATE;
    IF r.finished_at IS NOT NULL THEN
        RETURN 'finished';
    END IF;
    IF r.status = 'running' THEN
        UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, p_at) WHERE id = p_run;
        RETURN 'requested';
    END IF;
    PERFORM append_event(r.session_id, r.org_id, r.id, 'done',
        '{"status":"cancelled","finish_reason":"cancelled","usage":{"input_tokens":0,"output_tokens":0,"cost":0.0}}', p_at);
    PERFORM end_run(r.id, 'cancelled', 'cancelled', '{"input_tokens":0,"output_tokens":0,"cost":0.0}', NULL, p_at);
    RETURN 'cancelled';
END $$;

CREATE FUNCTION cancel_run(p_org text, p_run text,
    OUT outcome text, OUT session_id text, OUT last_seq bigint, OUT next_run text)
LANGUAGE plpgsql AS $$
DECLARE
    v_session text;
BEGIN
    SELECT runs.session_id INTO v_session FROM runs WHERE id = p_run AND org_id = p_org;
    IF v_session IS NULL THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    PERFORM 1 FROM sessions WHERE id = v_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'not_found';  -- deleted while we waited
        RETURN;
    END IF;
    outcome := cancel_locked_run(p_run, clock_timestamp());
    SELECT s.id, s.last_seq, s.head_run_id INTO session_id, last_seq, next_run FROM sessions s WHERE id = v_session;
END $$;

-- Takes a run in: one message or more, the run and its `run_queued` event, in a session that is there
-- (p_new_session false) or is made by the same call.
CREATE FUNCTION submit_run(
    p_org text, p_user text, p_session text, p_new_session boolean, p_run text, p_agent text, p_workflow text,
    p_request json, p_metadata json, p_if_busy text, p_message_ids text[], p_roles text[], p_contents text[],
    OUT outcome text, OUT session_id text, OUT turn integer, OUT seq bigint, OUT first_seq bigint,
    OUT at timestamptz, OUT agent_id text, OUT agent_version integer, OUT head boolean, OUT interrupted text[])
LANGUAGE plpgsql AS $$
DECLARE
    v_session sessions%ROWTYPE;
    v_org orgs%ROWTYPE;
    v_earlier text;
BEGIN
    SELECT * INTO v_org FROM orgs WHERE id = p_org;
    session_id := p_session;
    IF p_new_session THEN
        agent_id := coalesce(p_agent, v_org.default_agent_id);
    ELSE
        SELECT * INTO v_session FROM sessions WHERE id = p_session AND org_id = p_org FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            outcome := 'no_session';
            RETURN;
        END IF;
        IF v_session.head_run_id IS NOT NULL AND p_if_busy = 'reject' THEN
            outcome := 'busy';
            interrupted := ARRAY[v_session.head_run_id];
            RETURN;
        END IF;
        agent_id := coalesce(p_agent, v_session.agent_id, v_org.default_agent_id);
    END IF;

    SELECT a.version INTO agent_version FROM agents a
    WHERE a.id = submit_run.agent_id AND a.org_id = p_org AND a.deleted_at IS NULL;
    IF NOT FOUND THEN
        outcome := 'no_agent';
        RETURN;
    END IF;

    at := clock_timestamp();
    IF p_new_session THEN
        head := true;
        turn := 1;
        seq := 1;
        INSERT INTO sessions (id, org_id, user_id, agent_id, last_seq, turns, head_run_id, created_at, updated_at)
        VALUES (p_session, p_org, p_user, p_agent, 1, 1, p_run, at, at);
        first_seq := 1;
    ELSE
        first_seq := v_session.last_seq + 1;
        IF v_session.head_run_id IS NOT NULL AND p_if_busy = 'interrupt' THEN
            FOR v_earlier IN SELECT r.id FROM runs r WHERE r.session_id = p_session AND r.finished_at IS NULL
                             ORDER BY r.turn DESC
            LOOP
                IF cancel_locked_run(v_earlier, at) = 'requested' THEN
                    interrupted := interrupted || v_earlier;
                END IF;
            END LOOP;
        END IF;
        UPDATE sessions s SET last_seq = s.last_seq + 1, turns = s.turns + 1, updated_at = submit_run.at,
                              head_run_id = coalesce(s.head_run_id, p_run)
        WHERE s.id = p_session
        RETURNING s.last_seq, s.turns, s.head_run_id = p_run INTO seq, turn, head;
    END IF;

    INSERT INTO runs (id, org_id, session_id, turn, agent_id, agent_version, workflow, status, head, vtag,
                      user_id, request, metadata, first_seq, created_at)
    VALUES (p_run, p_org, p_session, turn, submit_run.agent_id, submit_run.agent_version, p_workflow, 'queued',
            submit_run.head, next_vtag(p_org, v_org.weight), p_user, p_request, p_metadata, seq, at);
    INSERT INTO messages (session_id, turn, path, position, id, org_id, run_id, role, content, created_at)
    SELECT p_session, submit_run.turn, '', m.n - 1, m.id, p_org, p_run, m.role, m.content::json, submit_run.at
    FROM unnest(p_message_ids, p_roles, p_contents) WITH ORDINALITY AS m (id, role, content, n);
    INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
    VALUES (p_session, submit_run.seq, p_org, p_run, 'run_queued',
            format('{"attempt":0,"agent_id":"%s","agent_version":%s}',
                   submit_run.agent_id, submit_run.agent_version)::json, submit_run.at);
    outcome := 'queued';
END $$;
