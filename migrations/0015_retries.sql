-- Retries: a run that goes on from where another one has ended.
--
-- The new run gets copies of what the old one has settled, its messages and the ledger of its calls, under its own id
-- and turn. Both outlive checkpoints, and from both together its first owner tells how far the old run had come.

ALTER TABLE runs ADD COLUMN retry_of text COLLATE "C" CHECK (retry_of ~ '^run_[0-9a-f]{32}$');

-- What an earlier run did: it is not repeated, is in that run's log, and counts for no limit of this one.
ALTER TABLE effects ADD COLUMN inherited boolean NOT NULL DEFAULT false;

-- Where the agent stands in the transcript of its run whose sub-agent, or that one's, is at p_path; -1 for its own.
CREATE FUNCTION asked_at(p_path text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substring(split_part(p_path, '/', 1) FROM ':([0-9]+)$')::integer, -1)
$$;

-- The number at the front of the id of a step of the run's own agent.
CREATE FUNCTION round_of(p_step text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT split_part(p_step, '-', 1)::integer
$$;

-- Takes in a run that goes on from p_run, which has ended: from its last finished step, or from the finished step
-- p_from_step of its own agent. p_budget holds limits that count instead of the old run's.
--
-- Left behind are the old run's last answer, calls whose outcome is not known and which may be made again, and with
-- p_from_step whatever came after the calls of that step.
CREATE FUNCTION retry_run(
    p_org text, p_user text, p_run text, p_new text, p_budget json, p_from_step text,
    OUT outcome text, OUT session_id text, OUT turn integer, OUT seq bigint, OUT at timestamptz, OUT head boolean,
    OUT from_step text)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    r runs%ROWTYPE;
    v_input integer;
    v_round integer;
    v_cut integer;
BEGIN
    SELECT t.session_id INTO session_id FROM runs t WHERE t.id = p_run AND t.org_id = p_org;
    IF session_id IS NULL THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    PERFORM 1 FROM sessions s WHERE s.id = session_id FOR NO KEY UPDATE;
    SELECT * INTO r FROM runs t WHERE t.id = p_run;
    IF r.id IS NULL THEN
        outcome := 'not_found';  -- deleted while we waited
        RETURN;
    ELSIF r.finished_at IS NULL THEN
        outcome := 'unfinished';
        RETURN;
    END IF;
    PERFORM FROM agents g WHERE g.id = r.agent_id AND g.deleted_at IS NULL;
    IF NOT FOUND THEN
        outcome := 'no_agent';
        RETURN;
    END IF;

    -- The input was written together with the run.
    v_input := coalesce((r.request -> 'retry' ->> 'input')::integer,
                        (SELECT count(*) FROM messages m WHERE m.session_id = r.session_id AND m.turn = r.turn
                                                           AND m.path = '' AND m.created_at = r.created_at));
    -- From here on nothing is copied: the last thing that was said, if it was an answer.
    SELECT CASE WHEN m.role = 'assistant' AND m.tool_calls IS NULL THEN m.position ELSE m.position + 1 END INTO v_cut
    FROM messages m WHERE m.session_id = r.session_id AND m.turn = r.turn AND m.path = '' AND m.position >= v_input
    ORDER BY m.position DESC LIMIT 1;
    v_cut := coalesce(v_cut, v_input);

    IF p_from_step IS NOT NULL THEN
        SELECT CASE s.state WHEN 'THINK' THEN v.calls ELSE v.round END INTO v_round
        FROM steps s, LATERAL (SELECT round_of(s.step_id) AS round,
                                      (SELECT min(round_of(f.step_id)) FROM effects f
                                       WHERE f.run_id = p_run AND f.path = ''
                                         AND round_of(f.step_id) > round_of(s.step_id)) AS calls) AS v
        WHERE s.run_id = p_run AND s.step_id = p_from_step AND s.path = '' AND s.state <> 'RESPOND';
        IF NOT FOUND THEN
            outcome := 'no_step';
            RETURN;
        END IF;
        -- The message that asked for the first calls of a later round stands just before them.
        v_cut := least(v_cut, (SELECT min(f.position) - 1 FROM effects f
                               WHERE f.run_id = p_run AND f.path = '' AND round_of(f.step_id) > v_round));
    END IF;

    at := clock_timestamp();
    UPDATE sessions s SET last_seq = s.last_seq + 1, turns = s.turns + 1, updated_at = at,
                          head_run_id = coalesce(s.head_run_id, p_new)
    WHERE s.id = session_id
    RETURNING s.last_seq, s.turns, s.head_run_id = p_new INTO seq, turn, head;

    INSERT INTO runs (id, org_id, session_id, turn, agent_id, agent_version, workflow, status, head, priority, user_id,
                      request, metadata, first_seq, created_at, retry_of)
    VALUES (p_new, p_org, r.session_id, turn, r.agent_id, r.agent_version, r.workflow, 'queued', head, r.priority,
            p_user,
            (r.request::jsonb || jsonb_build_object(
                'budget', coalesce(r.request::jsonb -> 'budget', '{}') || coalesce(p_budget::jsonb, '{}'),
                'retry', jsonb_build_object('of', p_run, 'input', v_input,
                                            'turn', coalesce((r.request -> 'retry' ->> 'turn')::integer, r.turn))))::json,
            r.metadata, seq, at, p_run);

    INSERT INTO effects (run_id, step_id, call_id, org_id, path, position, tool, effect, status, epoch, executions,
                         started_at, finished_at, inherited)
    SELECT p_new, f.step_id, f.call_id, f.org_id, f.path, f.position, f.tool, f.effect, f.status, 1, f.executions,
           f.started_at, f.finished_at, true
    FROM effects f
    WHERE f.run_id = p_run AND f.finished_at IS NOT NULL AND NOT (f.status = 'unknown' AND f.effect <> 'once')
      AND CASE f.path WHEN '' THEN f.position ELSE asked_at(f.path) END < v_cut;
    INSERT INTO messages (session_id, turn, path, position, id, org_id, run_id, role, content, tool_calls,
                          tool_call_id, created_at)
    SELECT r.session_id, retry_run.turn, m.path, m.position, 'msg_' || replace(gen_random_uuid()::text, '-', ''), p_org,
           p_new, m.role, m.content, m.tool_calls, m.tool_call_id, m.created_at
    FROM messages m
    WHERE m.session_id = r.session_id AND m.turn = r.turn
      AND CASE m.path WHEN '' THEN m.position ELSE asked_at(m.path) END < v_cut
      AND (m.role <> 'tool' OR EXISTS (SELECT FROM effects f WHERE f.run_id = p_new AND f.path = m.path
                                                               AND f.position = m.position));
    INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
    VALUES (r.session_id, seq, p_org, p_new, 'run_queued',
            format('{"attempt":0,"agent_id":"%s","agent_version":%s,"retry_of":"%s"}',
                   r.agent_id, r.agent_version, p_run)::json, at);

    -- THINK counts up to the round of the calls that it asked for.
    SELECT max(round_of(f.step_id)) INTO v_round FROM effects f WHERE f.run_id = p_new AND f.path = '';
    SELECT s.step_id INTO from_step FROM steps s
    WHERE s.run_id = p_run AND s.path = '' AND s.state <> 'RESPOND' AND v_cut > v_input
      AND coalesce(round_of(s.step_id) + (s.state = 'THINK')::integer <= v_round, true)
    ORDER BY round_of(s.step_id) DESC, s.state = 'THINK' DESC, s.finished_at DESC LIMIT 1;
    from_step := coalesce(from_step, 'start');
    outcome := 'queued';
END $$;
