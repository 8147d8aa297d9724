-- What a run needs to survive a bad day: the effect ledger, pause and resume, deadlines, the count of deaths, and
-- ways to end a run without its owner.

ALTER TABLE runs
    ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -10 AND 10),
    ADD COLUMN deadline_at timestamptz,          -- set by the caller, or by the first claim; then the run expires
    ADD COLUMN pause_requested_at timestamptz,   -- a queued run with this is held, a running one is asked to stop
    ADD COLUMN deaths smallint NOT NULL DEFAULT 0 CHECK (deaths >= 0),  -- in a row, without a finished step
    ADD COLUMN graph_version integer CHECK (graph_version >= 1),  -- of the graph that it was started with
    ADD COLUMN left_because text CHECK (left_because IN ('drained', 'store_away', 'paused')),
    ALTER COLUMN vtag DROP NOT NULL;             -- given by the claim
UPDATE runs SET graph_version = 1 WHERE epoch > 0 AND finished_at IS NULL;

CREATE INDEX runs_deadlines ON runs (deadline_at) WHERE finished_at IS NULL AND deadline_at IS NOT NULL;
CREATE INDEX runs_cancelling ON runs (cancel_requested_at) WHERE finished_at IS NULL AND cancel_requested_at IS NOT NULL;

-- The ledger: one row per tool call and delegation, under the key run_id:step_id:call_id. The result itself is the
-- message at (path, position), written in the same transaction as the outcome.
CREATE TABLE effects (
    run_id      text COLLATE "C" NOT NULL,
    step_id     text NOT NULL,
    call_id     text NOT NULL,
    org_id      text COLLATE "C" NOT NULL,
    path        text NOT NULL,
    position    integer NOT NULL,
    tool        text NOT NULL,
    effect      text NOT NULL CHECK (effect IN ('read', 'idempotent', 'once')),
    status      text NOT NULL CHECK (status IN ('started', 'ok', 'error', 'denied', 'unknown')),
    epoch       integer NOT NULL CHECK (epoch >= 1),
    executions  integer NOT NULL CHECK (executions >= 0),  -- how often it was started; 0: it was denied
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (run_id, step_id, call_id),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE,
    CHECK ((status = 'started') = (finished_at IS NULL)),
    CHECK (effect <> 'once' OR executions <= 1)
);

-- Ends an unfinished run without its owner: messages that were begun are discarded, calls that are under way have an
-- unknown outcome, `done` says what was used. An owner that is still at work finds its epoch over. The caller has
-- locked the session row. Returns the next run.
CREATE FUNCTION end_run_from_outside(p_run text, p_status text, p_reason text, p_error json, p_at timestamptz)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r runs%ROWTYPE;
    v_message record;
    v_call effects%ROWTYPE;
    v_lost text := 'The run ended while this call was under way: nobody can tell whether it was done.';
    v_usage json := '{"input_tokens":0,"output_tokens":0,"cost":0.0}';
BEGIN
    SELECT * INTO STRICT r FROM runs WHERE id = p_run;
    IF r.epoch > 0 THEN
        FOR v_message IN
            SELECT e.data ->> 'message_id' AS id, min(e.data ->> 'path') AS path FROM events e
            WHERE e.session_id = r.session_id AND e.seq >= r.first_seq AND e.run_id = p_run
              AND e.type IN ('message_chunk', 'message', 'message_discarded')
            GROUP BY 1 HAVING bool_and(e.type = 'message_chunk') ORDER BY min(e.seq)
        LOOP
            PERFORM append_event(r.session_id, r.org_id, p_run, 'message_discarded',
                json_strip_nulls(json_build_object('message_id', v_message.id, 'path', v_message.path)), p_at);
        END LOOP;
        FOR v_call IN
            UPDATE effects SET status = 'unknown', finished_at = p_at
            WHERE org_id = r.org_id AND run_id = p_run AND status = 'started' RETURNING *
        LOOP
            IF v_call.tool <> 'delegate' THEN
                PERFORM append_event(r.session_id, r.org_id, p_run, 'tool_result', json_strip_nulls(json_build_object(
                    'call_id', v_call.call_id, 'name', v_call.tool, 'status', 'unknown', 'result', v_lost,
                    'duration_ms', 0, 'path', nullif(v_call.path, ''))), p_at);
            END IF;
            INSERT INTO messages (session_id, turn, path, position, id, org_id, run_id, role, content, tool_call_id,
                                  created_at)
            VALUES (r.session_id, r.turn, v_call.path, v_call.position,
                    'msg_' || replace(gen_random_uuid()::text, '-', ''), r.org_id, p_run, 'tool', to_json(v_lost),
                    v_call.call_id, p_at);
        END LOOP;
        SELECT json_build_object('input_tokens', coalesce(sum((u.data ->> 'input_tokens')::bigint), 0),
                                 'output_tokens', coalesce(sum((u.data ->> 'output_tokens')::bigint), 0),
                                 'cost', coalesce(sum((u.data ->> 'cost')::double precision), 0))
        INTO v_usage FROM events u
        WHERE u.session_id = r.session_id AND u.seq >= r.first_seq AND u.run_id = p_run AND u.type = 'usage';
    END IF;
    IF p_error IS NOT NULL THEN
        PERFORM append_event(r.session_id, r.org_id, p_run, 'error', p_error, p_at);
    END IF;
    PERFORM append_event(r.session_id, r.org_id, p_run, 'done',
        json_build_object('status', p_status, 'finish_reason', p_reason, 'usage', v_usage), p_at);
    RETURN end_run(p_run, p_status, p_reason, v_usage, p_error, p_at);
END $$;

-- Cancels one unfinished run; the caller has locked the session row. One that nobody runs ends here, also when
-- its owner has let its lease run out; a living owner is asked to end it. Returns 'cancelled', 'requested' or
-- 'finished'.
CREATE OR REPLACE FUNCTION cancel_locked_run(p_run text, p_at timestamptz) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r runs%ROWTYPE;
BEGIN
    SELECT * INTO r FROM runs WHERE id = p_run FOR NO KEY UPDATE;
    IF r.finished_at IS NOT NULL THEN
        RETURN 'finished';
    END IF;
    IF r.status = 'running' AND r.lease_until >= clock_timestamp() THEN
        UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, p_at) WHERE id = p_run;
        RETURN 'requested';
    END IF;
    PERFORM end_run_from_outside(p_run, 'cancelled', 'cancelled', NULL, p_at);
    RETURN 'cancelled';
END $$;

-- Pauses an unfinished run: a queued one is held, a running one stops after its present step. Returns 'held',
-- 'requested', 'waiting' (it is paused already), 'finished' or 'not_found'.
CREATE FUNCTION pause_run(p_org text, p_run text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r runs%ROWTYPE;
BEGIN
    SELECT * INTO r FROM runs WHERE id = p_run AND org_id = p_org;
    IF r.id IS NULL THEN
        RETURN 'not_found';
    END IF;
    PERFORM 1 FROM sessions WHERE id = r.session_id FOR NO KEY UPDATE;
    SELECT * INTO r FROM runs WHERE id = p_run FOR NO KEY UPDATE;
    IF r.id IS NULL THEN
        RETURN 'not_found';
    ELSIF r.finished_at IS NOT NULL THEN
        RETURN 'finished';
    ELSIF r.status = 'waiting' THEN
        RETURN 'waiting';
    END IF;
    UPDATE runs SET pause_requested_at = coalesce(pause_requested_at, clock_timestamp()) WHERE id = p_run;
    RETURN CASE r.status WHEN 'running' THEN 'requested' ELSE 'held' END;
END $$;

-- Lets a paused run go on. Returns 'resumed' (a worker may claim it), 'running' (the pause had not taken effect
-- yet), 'unchanged' (it was not paused), 'finished' or 'not_found'.
CREATE FUNCTION resume_run(p_org text, p_run text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r runs%ROWTYPE;
BEGIN
    SELECT * INTO r FROM runs WHERE id = p_run AND org_id = p_org;
    IF r.id IS NULL THEN
        RETURN 'not_found';
    END IF;
    PERFORM 1 FROM sessions WHERE id = r.session_id FOR NO KEY UPDATE;
    SELECT * INTO r FROM runs WHERE id = p_run FOR NO KEY UPDATE;
    IF r.id IS NULL THEN
        RETURN 'not_found';
    ELSIF r.finished_at IS NOT NULL THEN
        RETURN 'finished';
    ELSIF r.pause_requested_at IS NULL THEN
        RETURN 'unchanged';
    END IF;
    UPDATE runs SET pause_requested_at = NULL, status = CASE status WHEN 'waiting' THEN 'queued' ELSE status END
    WHERE id = p_run;
    RETURN CASE r.status WHEN 'running' THEN 'running' ELSE 'resumed' END;
END $$;

-- Ends what should have ended by now: runs past their deadline, wherever they are, running ones whose owner was asked
-- to cancel them p_patience seconds ago and did not, and those whose owner gave them back before it heard of that. At
-- most p_limit of each; sessions that are locked right now are left to the next look. Returns whom to tell, and the runs
-- that came to the head of their session. Locks in the order in which leases are renewed, by session.
CREATE FUNCTION end_overdue_runs(p_patience double precision, p_limit integer)
RETURNS TABLE (org_id text, session_id text, run_id text, status text, next_run text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_at timestamptz := clock_timestamp();
    v_patience interval := make_interval(secs => p_patience);
    v_due record;
    r runs%ROWTYPE;
BEGIN
    FOR v_due IN
        SELECT due.* FROM (
            (SELECT id, runs.session_id FROM runs
             WHERE finished_at IS NULL AND cancel_requested_at IS NOT NULL
               AND (runs.status <> 'running' OR cancel_requested_at < v_at - v_patience)
             LIMIT p_limit)
            UNION ALL
            (SELECT id, runs.session_id FROM runs
             WHERE finished_at IS NULL AND deadline_at IS NOT NULL AND deadline_at < v_at
               AND (runs.status <> 'running' OR deadline_at < v_at - v_patience)
             LIMIT p_limit)) AS due
        ORDER BY due.session_id
    LOOP
        PERFORM 1 FROM sessions WHERE id = v_due.session_id FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        SELECT * INTO r FROM runs WHERE id = v_due.id FOR NO KEY UPDATE;
        CONTINUE WHEN r.id IS NULL OR r.finished_at IS NOT NULL;
        IF r.cancel_requested_at IS NOT NULL THEN
            status := 'cancelled';
            next_run := end_run_from_outside(r.id, 'cancelled', 'cancelled', NULL, v_at);
        ELSE
            status := 'expired';
            next_run := end_run_from_outside(r.id, 'expired', 'deadline', json_build_object(
                'code', 'deadline',
                'message', CASE r.epoch WHEN 0 THEN 'The run''s deadline passed before a worker could start it.'
                                        ELSE 'The run did not end before its deadline.' END,
                'retryable', r.epoch = 0,
                'suggestions', json_build_array('raise limits.timeout_seconds of the agent, or budget.timeout_seconds '
                                                'or deadline_seconds of the run', 'send the request again')), v_at);
        END IF;
        org_id := r.org_id;
        session_id := r.session_id;
        run_id := r.id;
        RETURN NEXT;
    END LOOP;
END $$;

-- The functions of the same names with fewer parameters serve processes of the release before this one, which go
-- on while a new one is rolled out. A later migration drops them.

-- Takes a run in: one message or more, the run and its `run_queued` event, in a session that is there
-- (p_new_session false) or is made by the same call. p_deadline: seconds from now, or NULL.
CREATE FUNCTION submit_run(
    p_org text, p_user text, p_session text, p_new_session boolean, p_run text, p_agent text, p_workflow text,
    p_request json, p_metadata json, p_if_busy text, p_message_ids text[], p_roles text[], p_contents text[],
    p_priority integer, p_deadline double precision,
    OUT outcome text, OUT session_id text, OUT turn integer, OUT seq bigint, OUT first_seq bigint,
    OUT at timestamptz, OUT agent_id text, OUT agent_version integer, OUT head boolean, OUT interrupted text[],
    OUT deadline_at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    v_session sessions%ROWTYPE;
    v_default_agent text;
    v_earlier text;
BEGIN
    SELECT o.default_agent_id INTO v_default_agent FROM orgs o WHERE o.id = p_org;
    session_id := p_session;
    IF p_new_session THEN
        agent_id := coalesce(p_agent, v_default_agent);
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
        agent_id := coalesce(p_agent, v_session.agent_id, v_default_agent);
    END IF;

    SELECT a.version INTO agent_version FROM agents a
    WHERE a.id = submit_run.agent_id AND a.org_id = p_org AND a.deleted_at IS NULL;
    IF NOT FOUND THEN
        outcome := 'no_agent';
        RETURN;
    END IF;

    at := clock_timestamp();
    deadline_at := at + make_interval(secs => p_deadline);
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

    INSERT INTO runs (id, org_id, session_id, turn, agent_id, agent_version, workflow, status, head, priority,
                      deadline_at, user_id, request, metadata, first_seq, created_at)
    VALUES (p_run, p_org, p_session, turn, submit_run.agent_id, submit_run.agent_version, p_workflow, 'queued',
            submit_run.head, p_priority, submit_run.deadline_at, p_user, p_request, p_metadata, seq, at);
    INSERT INTO messages (session_id, turn, path, position, id, org_id, run_id, role, content, created_at)
    SELECT p_session, submit_run.turn, '', m.n - 1, m.id, p_org, p_run, m.role, m.content::json, submit_run.at
    FROM unnest(p_message_ids, p_roles, p_contents) WITH ORDINALITY AS m (id, role, content, n);
    INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
    VALUES (p_session, submit_run.seq, p_org, p_run, 'run_queued',
            format('{"attempt":0,"agent_id":"%s","agent_version":%s}',
                   submit_run.agent_id, submit_run.agent_version)::json, submit_run.at);
    outcome := 'queued';
END $$;
