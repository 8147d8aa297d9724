-- Approvals: what a run waits for that a person, or its caller, has to decide. A call that needs approval, a question,
-- a call that the caller makes itself, a limit that may be raised.
--
-- Locks are taken session first, then run, then approval. So a run comes to rest and a decision is made one after the
-- other, and a run that rests because of approvals always has one that is pending: whatever resolves one wakes it.

ALTER TABLE api_keys ADD COLUMN roles text[] NOT NULL DEFAULT '{}';

ALTER TABLE runs
    DROP CONSTRAINT runs_left_because_check,
    ADD CONSTRAINT runs_left_because_check CHECK (left_because IN ('drained', 'store_away', 'paused', 'approval'));

CREATE TABLE approvals (
    id            text COLLATE "C" PRIMARY KEY CHECK (id ~ '^apr_[0-9a-f]{32}$'),
    org_id        text COLLATE "C" NOT NULL,
    run_id        text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    step_id       text NOT NULL,
    call_id       text NOT NULL,
    path          text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('tool', 'question', 'client_tool', 'limit')),
    name          text NOT NULL,
    arguments     json NOT NULL,  -- as the model gave them
    edited        json,           -- as the last person who changed them did
    revision      integer NOT NULL DEFAULT 0 CHECK (revision >= 0),  -- how often they were changed
    prompt        text NOT NULL,
    schema        json,           -- of the answer; of the arguments, where these may be changed
    max_bytes     integer,        -- of the answer
    role          text,
    approvers     integer NOT NULL CHECK (approvers BETWEEN 1 AND 10),
    status        text NOT NULL DEFAULT 'pending' CHECK (status IN
                      ('pending', 'approved', 'denied', 'answered', 'expired', 'cancelled')),
    on_expiry     text NOT NULL CHECK (on_expiry IN ('deny', 'approve', 'fail')),
    expires_at    timestamptz NOT NULL,
    escalate_at   timestamptz,
    escalate_role text,
    escalated_at  timestamptz,
    answer        json,
    error         text,           -- instead of an answer: what went wrong with it, says the caller
    comment       text,
    decided_by    text,           -- a user, else a key, else 'expiry'
    decided_at    timestamptz,
    created_at    timestamptz NOT NULL,
    UNIQUE (run_id, step_id, call_id, kind),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE,
    CHECK ((status = 'pending') = (decided_at IS NULL)),
    CHECK ((escalate_at IS NULL) = (escalate_role IS NULL)),
    CHECK (kind IN ('tool', 'limit') OR approvers = 1),
    CHECK (status <> 'answered' OR (answer IS NULL) <> (error IS NULL)),
    CHECK (status = 'answered' OR answer IS NULL AND error IS NULL)
);
CREATE INDEX approvals_org ON approvals (org_id, id);
CREATE INDEX approvals_expiring ON approvals (expires_at) WHERE status = 'pending';
CREATE INDEX approvals_escalating ON approvals (escalate_at)
    WHERE status = 'pending' AND escalate_at IS NOT NULL AND escalated_at IS NULL;

-- The audit trail: what became of an approval and by whom, in order.
CREATE TABLE approval_decisions (
    approval_id text COLLATE "C" NOT NULL REFERENCES approvals ON DELETE CASCADE,
    place       integer NOT NULL CHECK (place >= 1),
    org_id      text COLLATE "C" NOT NULL,
    decision    text NOT NULL CHECK (decision IN ('approve', 'deny', 'answer', 'escalate', 'expire', 'cancel')),
    revision    integer NOT NULL,
    voter       text,    -- who counts as one person: the user, else the key
    user_id     text,
    key_id      text,
    role        text,    -- by which it was decided, or to which it was escalated
    arguments   json,    -- where they were changed
    comment     text,
    at          timestamptz NOT NULL,
    PRIMARY KEY (approval_id, place),
    CHECK ((voter IS NOT NULL) = (decision IN ('approve', 'deny', 'answer')))
);
-- Nobody approves the same thing twice.
CREATE UNIQUE INDEX approval_votes ON approval_decisions (approval_id, revision, voter) WHERE decision = 'approve';

CREATE FUNCTION note_decision(p_approval approvals, p_decision text, p_voter text, p_user text, p_key text, p_role text,
    p_arguments json, p_comment text, p_at timestamptz) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO approval_decisions (approval_id, place, org_id, decision, revision, voter, user_id, key_id, role,
                                    arguments, comment, at)
    SELECT p_approval.id, 1 + count(*), p_approval.org_id, p_decision, p_approval.revision, p_voter, p_user, p_key,
           p_role, p_arguments, p_comment, p_at
    FROM approval_decisions WHERE approval_id = p_approval.id
$$;

-- Resolves a pending approval and wakes its run; the caller has locked session, run and approval. Whether the run may
-- be claimed by that.
CREATE FUNCTION resolve_approval(p_approval approvals, p_status text, p_by text, p_answer json, p_error text,
    p_comment text, p_at timestamptz) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_status text;
BEGIN
    UPDATE approvals SET status = p_status, decided_by = p_by, decided_at = p_at, answer = p_answer, error = p_error,
                         comment = p_comment
    WHERE id = p_approval.id;
    PERFORM append_event(p_approval.session_id, p_approval.org_id, p_approval.run_id, 'approval_resolved',
        json_strip_nulls(json_build_object('approval_id', p_approval.id, 'kind', p_approval.kind,
            'call_id', p_approval.call_id, 'decision', p_status, 'by', p_by, 'comment', p_comment,
            'path', nullif(p_approval.path, ''))), p_at);
    -- One that is paused too goes on when it is resumed: from now on it waits for nothing else.
    UPDATE runs SET status = CASE WHEN pause_requested_at IS NULL THEN 'queued' ELSE 'waiting' END,
                    left_because = CASE WHEN pause_requested_at IS NULL THEN 'approval' ELSE 'paused' END
    WHERE id = p_approval.run_id AND status = 'waiting' AND left_because = 'approval'
    RETURNING status INTO v_status;
    RETURN coalesce(v_status = 'queued', false);
END $$;

-- Decides an approval of org p_org: 'approve', 'deny' or 'answer'. p_voter is who counts as one person, p_revision the
-- revision that was seen, if the caller cares. Outcomes: 'decided'; 'recorded' (more people must approve); 'not_found';
-- 'forbidden' (the role is lacking); 'conflict' (it is decided, expired or cancelled, see `status` and `at`); 'over' (its
-- time is, and nobody has looked yet); 'changed' (another revision); 'voted' (by the same person); 'wrong_kind'.
CREATE FUNCTION decide_approval(
    p_org text, p_approval text, p_voter text, p_user text, p_key text, p_roles text[], p_admin boolean, p_decision text,
    p_arguments json, p_answer json, p_error text, p_comment text, p_revision integer,
    OUT outcome text, OUT session_id text, OUT run_id text, OUT claimable boolean, OUT status text, OUT role text,
    OUT decided_by text, OUT at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    a approvals%ROWTYPE;
    v_at timestamptz;
    v_votes integer;
    v_role text;
BEGIN
    claimable := false;
    SELECT * INTO a FROM approvals x WHERE x.id = p_approval AND x.org_id = p_org;
    IF a.id IS NULL THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    PERFORM 1 FROM sessions s WHERE s.id = a.session_id FOR NO KEY UPDATE;
    PERFORM 1 FROM runs r WHERE r.id = a.run_id FOR NO KEY UPDATE;
    SELECT * INTO a FROM approvals x WHERE x.id = p_approval FOR UPDATE;
    IF a.id IS NULL THEN
        outcome := 'not_found';  -- deleted while we waited
        RETURN;
    END IF;
    v_at := clock_timestamp();
    session_id := a.session_id;
    run_id := a.run_id;
    status := a.status;
    decided_by := a.decided_by;
    at := a.decided_at;
    role := a.role;
    IF a.role = ANY (p_roles) THEN
        v_role := a.role;
    ELSIF a.escalated_at IS NOT NULL AND a.escalate_role = ANY (p_roles) THEN
        v_role := a.escalate_role;
    ELSIF a.role IS NOT NULL AND p_admin THEN
        v_role := 'admin';
    ELSIF a.role IS NOT NULL THEN
        role := concat_ws(' or ', a.role, CASE WHEN a.escalated_at IS NOT NULL THEN a.escalate_role END);
        outcome := 'forbidden';
        RETURN;
    END IF;
    IF a.status <> 'pending' THEN
        outcome := 'conflict';
        RETURN;
    ELSIF a.expires_at <= v_at THEN
        outcome := 'over';
        at := a.expires_at;
        RETURN;
    ELSIF p_decision = 'approve' AND a.kind NOT IN ('tool', 'limit')
          OR p_decision = 'answer' AND a.kind NOT IN ('question', 'client_tool') THEN
        outcome := 'wrong_kind';
        RETURN;
    ELSIF p_revision <> a.revision THEN
        outcome := 'changed';
        RETURN;
    END IF;

    at := v_at;
    decided_by := p_voter;
    outcome := 'decided';
    IF p_decision = 'approve' THEN
        IF p_arguments IS NOT NULL THEN  -- who approved what it was before has not approved this
            UPDATE approvals SET edited = p_arguments, revision = revision + 1 WHERE id = a.id RETURNING * INTO a;
        END IF;
        PERFORM 1 FROM approval_decisions d
        WHERE d.approval_id = a.id AND d.revision = a.revision AND d.voter = p_voter AND d.decision = 'approve';
        IF FOUND THEN
            outcome := 'voted';
            RETURN;
        END IF;
    END IF;
    PERFORM note_decision(a, p_decision, p_voter, p_user, p_key, v_role, p_arguments, p_comment, v_at);
    IF p_decision = 'approve' THEN
        SELECT count(*) INTO v_votes FROM approval_decisions d
        WHERE d.approval_id = a.id AND d.revision = a.revision AND d.decision = 'approve';
        IF v_votes < a.approvers THEN
            outcome := 'recorded';
            RETURN;
        END IF;
    END IF;
    status := CASE p_decision WHEN 'approve' THEN 'approved' WHEN 'deny' THEN 'denied' ELSE 'answered' END;
    claimable := resolve_approval(a, status, p_voter, p_answer, p_error, p_comment, v_at);
END $$;

-- Does what is due: approvals that nobody decided in time come to what was said for that case, and those that wait for
-- long are shown to a further role. At most p_limit of each; sessions that are locked right now are left to the next
-- look. Returns whom to tell, and whether a run can be claimed by it. Locks in the order in which leases are renewed.
CREATE FUNCTION resolve_due_approvals(p_limit integer)
RETURNS TABLE (org_id text, session_id text, run_id text, approval_id text, outcome text, claimable boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_at timestamptz := clock_timestamp();
    v_due record;
    v_run text;
    v_event text;
    a approvals%ROWTYPE;
BEGIN
    FOR v_due IN
        SELECT due.* FROM (
            (SELECT id, approvals.session_id FROM approvals
             WHERE status = 'pending' AND expires_at <= v_at ORDER BY expires_at LIMIT p_limit)
            UNION
            (SELECT id, approvals.session_id FROM approvals
             WHERE status = 'pending' AND escalate_at IS NOT NULL AND escalated_at IS NULL AND escalate_at <= v_at
             ORDER BY escalate_at LIMIT p_limit)) AS due
        ORDER BY due.session_id, due.id
    LOOP
        PERFORM 1 FROM sessions WHERE id = v_due.session_id FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        SELECT status INTO v_run FROM runs
        WHERE id = (SELECT approvals.run_id FROM approvals WHERE id = v_due.id) FOR NO KEY UPDATE;
        SELECT * INTO a FROM approvals WHERE id = v_due.id FOR UPDATE;
        CONTINUE WHEN a.id IS NULL OR a.status <> 'pending';
        org_id := a.org_id;
        session_id := a.session_id;
        run_id := a.run_id;
        approval_id := a.id;
        IF a.expires_at <= v_at THEN
            PERFORM note_decision(a, 'expire', NULL, NULL, NULL, NULL, NULL, NULL, v_at);
            outcome := CASE WHEN a.on_expiry = 'approve' AND a.kind IN ('tool', 'limit') THEN 'approved' ELSE 'expired' END;
            claimable := resolve_approval(a, outcome, 'expiry', NULL, NULL, NULL, v_at);
            IF a.on_expiry = 'fail' AND v_run = 'waiting' THEN  -- a running one is ended by its owner
                claimable := end_run_from_outside(a.run_id, 'failed', 'approval_expired', json_build_object(
                    'code', 'approval_expired',
                    'message', format('Nobody decided in time about %s.', a.name),
                    'retryable', false,
                    'suggestions', json_build_array('send the request again, and decide in time',
                        'raise expires_seconds of the tool''s approval policy, or have on_expiry deny')), v_at)
                    IS NOT NULL;
            END IF;
        ELSE
            UPDATE approvals SET escalated_at = v_at WHERE id = a.id;
            PERFORM note_decision(a, 'escalate', NULL, NULL, NULL, a.escalate_role, NULL, NULL, v_at);
            v_event := json_build_object(
                'approval_id', a.id, 'kind', a.kind, 'call_id', a.call_id, 'name', a.name,
                'arguments', coalesce(a.edited, a.arguments), 'prompt', a.prompt, 'schema', a.schema,
                'role', a.escalate_role, 'escalated', true,
                'expires_at', to_char(a.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'));
            IF a.path <> '' THEN
                v_event := left(v_event, -1) || format(',"path":%s}', to_json(a.path));
            END IF;
            PERFORM append_event(a.session_id, a.org_id, a.run_id, 'approval_required', v_event::json, v_at);
            outcome := 'escalated';
            claimable := false;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Ends a run whose session row the caller has locked, and moves the session's head to the next queued run. What it was
-- still waiting for is cancelled. Returns that run's id, or NULL. Writes no event: the caller's log entry `done` goes
-- with it.
CREATE OR REPLACE FUNCTION end_run(
    p_run text, p_status text, p_reason text, p_usage json, p_error json, p_at timestamptz)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_session text;
    v_next text;
    v_open approvals%ROWTYPE;
BEGIN
    UPDATE runs SET status = p_status, finish_reason = p_reason, usage = p_usage, error = p_error,
                    finished_at = p_at, head = false, worker = NULL, lease_until = NULL
    WHERE id = p_run AND finished_at IS NULL
    RETURNING session_id INTO v_session;
    IF v_session IS NULL THEN
        RAISE EXCEPTION 'run % is not there or has ended already', p_run USING ERRCODE = 'LH001';
    END IF;
    FOR v_open IN
        UPDATE approvals SET status = 'cancelled', decided_at = p_at WHERE run_id = p_run AND status = 'pending' RETURNING *
    LOOP
        PERFORM note_decision(v_open, 'cancel', NULL, NULL, NULL, NULL, NULL, NULL, p_at);
    END LOOP;
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

-- Pauses an unfinished run: a queued one is held, a running one stops after its present step, and one that waits for a
-- decision does not go on by it. Returns 'held', 'requested', 'waiting' (it has no worker already), 'finished' or
-- 'not_found'.
CREATE OR REPLACE FUNCTION pause_run(p_org text, p_run text) RETURNS text LANGUAGE plpgsql AS $$
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
    END IF;
    UPDATE runs SET pause_requested_at = coalesce(pause_requested_at, clock_timestamp()) WHERE id = p_run;
    RETURN CASE r.status WHEN 'running' THEN 'requested' WHEN 'waiting' THEN 'waiting' ELSE 'held' END;
END $$;

-- Lets a paused run go on. Returns 'resumed' (a worker may claim it), 'running' (the pause had not taken effect yet),
-- 'unchanged' (it was not paused), 'undecided' (it is no longer paused, and waits for a decision), 'finished' or
-- 'not_found'.
CREATE OR REPLACE FUNCTION resume_run(p_org text, p_run text) RETURNS text LANGUAGE plpgsql AS $$
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
    ELSIF r.status = 'waiting' AND r.left_because = 'approval' THEN
        UPDATE runs SET pause_requested_at = NULL WHERE id = p_run;
        RETURN 'undecided';
    END IF;
    UPDATE runs SET pause_requested_at = NULL, status = CASE status WHEN 'waiting' THEN 'queued' ELSE status END
    WHERE id = p_run;
    RETURN CASE r.status WHEN 'running' THEN 'running' ELSE 'resumed' END;
END $$;

-- The p_most runs to start next, from the p_orgs lowest lanes, without locks: when they are claimed, one may be gone
-- and a cap be reached. One that has waited for a decision lost its slot as one that was paused did.
CREATE OR REPLACE FUNCTION fairest_runs(p_start text, p_vtime double precision, p_most integer, p_orgs integer, p_graph integer)
RETURNS TABLE (id text, tag double precision, org_id text, agent_id text, org_cap integer, agent_cap integer)
LANGUAGE sql STABLE AS $$
    SELECT f.id, f.start + (f.nth - 1) / f.weight AS tag, f.org_id, f.agent_id, f.cap, f.agent_cap
    FROM (SELECT q.id, lowest.start, lowest.org_id, a.id AS agent_id, lowest.weight, lowest.cap, lowest.room,
                 a.max_running AS agent_cap,
                 row_number() OVER (PARTITION BY lowest.org_id ORDER BY q.rank, q.id) AS nth
          FROM (SELECT l.*, greatest(p_vtime, l.place) AS start FROM open_lanes(p_start, p_vtime) l
                ORDER BY start, l.id LIMIT p_orgs) AS lowest,
               LATERAL waiting_agents(lowest.lane, lowest.agent, lowest.rank, lowest.id, p_start, 64) w
                   JOIN agents a ON a.id = w.agent_id,
               LATERAL room_for_agent(a.org_id, a.id, a.max_running) room,
               LATERAL (SELECT r.id, -r.priority AS rank FROM runs r
                        WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
                          AND reverse(r.org_id) = lowest.lane AND reverse(r.agent_id) = w.agent
                          AND (-r.priority, r.id) >= (w.rank, w.id) AND coalesce(r.graph_version, 1) <= p_graph
                          AND coalesce(r.left_because, 'paused') IN ('paused', 'approval')
                          AND (r.deadline_at IS NULL OR r.deadline_at > now())  -- else it is about to be ended
                        ORDER BY -r.priority, r.id LIMIT least(p_most, lowest.room, room.room)) q
         ) AS f
    WHERE f.nth <= f.room
    ORDER BY tag, f.id LIMIT p_most
$$;
