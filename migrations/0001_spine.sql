-- Orgs, agents, sessions, runs and the event journal.
--
-- Two rules carry most of the weight:
--   * the session row is lock and fence: whoever writes to a session's log holds its row, and a worker may
--     write only while (head_run_id, head_epoch) name its run and its epoch;
--   * locks are taken session first, then run. Claims, which start from runs, skip what is locked.
-- Ids are compared bytewise (COLLATE "C"): they are hexadecimal, and it is faster.

CREATE TABLE orgs (
    id               text COLLATE "C" PRIMARY KEY CHECK (id ~ '^org_[0-9a-f]{32}$'),
    name             text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    weight           double precision NOT NULL DEFAULT 1 CHECK (weight > 0),
    default_agent_id text COLLATE "C",
    created_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^key_[0-9a-f]{32}$'),
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    hash       bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    user_id    text CHECK (length(user_id) BETWEEN 1 AND 200),
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_org ON api_keys (org_id, id);

CREATE TABLE agents (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^agt_[0-9a-f]{32}$'),
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    version    integer NOT NULL DEFAULT 1 CHECK (version >= 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    UNIQUE (org_id, id)
);
CREATE UNIQUE INDEX agents_name ON agents (org_id, name) WHERE deleted_at IS NULL;
ALTER TABLE orgs ADD FOREIGN KEY (id, default_agent_id) REFERENCES agents (org_id, id) DEFERRABLE INITIALLY DEFERRED;

-- A run pins the version it started with, so versions are never changed and outlive the agent's deletion.
CREATE TABLE agent_versions (
    agent_id   text COLLATE "C" NOT NULL,
    version    integer NOT NULL CHECK (version >= 1),
    org_id     text COLLATE "C" NOT NULL,
    config     json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, version),
    FOREIGN KEY (org_id, agent_id) REFERENCES agents (org_id, id) ON DELETE CASCADE
);

CREATE TABLE sessions (
    id          text COLLATE "C" PRIMARY KEY CHECK (id ~ '^ses_[0-9a-f]{32}$'),
    org_id      text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    user_id     text CHECK (length(user_id) BETWEEN 1 AND 200),
    agent_id    text COLLATE "C",
    title       text CHECK (length(title) <= 500),
    metadata    json NOT NULL DEFAULT '{}',
    last_seq    bigint NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    turns       integer NOT NULL DEFAULT 0 CHECK (turns >= 0),
    -- the first unfinished run, the epoch of its present owner (0: nobody owns it), and how many
    -- batches that owner has committed (a batch sent twice is taken once)
    head_run_id text COLLATE "C",
    head_epoch  integer NOT NULL DEFAULT 0 CHECK (head_epoch >= 0),
    head_batch  integer NOT NULL DEFAULT 0 CHECK (head_batch >= 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, id),
    FOREIGN KEY (org_id, agent_id) REFERENCES agents (org_id, id),
    CHECK (head_run_id IS NOT NULL OR head_epoch = 0)
) WITH (fillfactor = 70);

CREATE TABLE runs (
    id                  text COLLATE "C" PRIMARY KEY CHECK (id ~ '^run_[0-9a-f]{32}$'),
    org_id              text COLLATE "C" NOT NULL,
    session_id          text COLLATE "C" NOT NULL,
    turn                integer NOT NULL CHECK (turn >= 1),
    agent_id            text COLLATE "C" NOT NULL,
    agent_version       integer NOT NULL,
    workflow            text NOT NULL CHECK (length(workflow) BETWEEN 1 AND 100),
    status              text NOT NULL CHECK (status IN
                            ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'expired')),
    head                boolean NOT NULL,
    epoch               integer NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempt             integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    last_batch          integer,  -- the owner's batch that ended the run
    vtag                double precision NOT NULL,
    user_id             text,
    request             json NOT NULL,
    metadata            json NOT NULL DEFAULT '{}',
    worker              text,
    lease_until         timestamptz,
    cancel_requested_at timestamptz,
    finish_reason       text,
    usage               json,
    error               json,
    first_seq           bigint NOT NULL CHECK (first_seq >= 1),
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    UNIQUE (session_id, turn),
    UNIQUE (org_id, id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE,
    FOREIGN KEY (agent_id, agent_version) REFERENCES agent_versions (agent_id, version),
    CHECK ((status = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)),
    CHECK ((status IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)),
    CHECK (NOT (head AND finished_at IS NOT NULL)),
    CHECK (head OR status NOT IN ('running', 'waiting'))
) WITH (fillfactor = 80);
-- one run at a time per session
CREATE UNIQUE INDEX runs_head ON runs (session_id) WHERE head;
CREATE INDEX runs_claimable ON runs (vtag, id) WHERE head AND status = 'queued';
CREATE INDEX runs_org_vtag ON runs (org_id, vtag) WHERE status IN ('queued', 'running');
CREATE INDEX runs_running_vtag ON runs (vtag) WHERE status = 'running';
CREATE INDEX runs_leases ON runs (lease_until) WHERE status = 'running';

CREATE TABLE messages (
    session_id   text COLLATE "C" NOT NULL,
    turn         integer NOT NULL,
    path         text NOT NULL DEFAULT '',
    position     integer NOT NULL CHECK (position >= 0),
    id           text COLLATE "C" NOT NULL UNIQUE CHECK (id ~ '^msg_[0-9a-f]{32}$'),
    org_id       text COLLATE "C" NOT NULL,
    run_id       text COLLATE "C" NOT NULL,
    role         text NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    content      json NOT NULL,
    tool_calls   json,
    tool_call_id text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, turn, path, position),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE,
    CHECK ((role = 'tool') = (tool_call_id IS NOT NULL))
);

CREATE TABLE steps (
    run_id      text COLLATE "C" NOT NULL,
    step_id     text NOT NULL,
    org_id      text COLLATE "C" NOT NULL,
    path        text NOT NULL DEFAULT '',
    state       text NOT NULL CHECK (state IN ('THINK', 'ACT', 'DELEGATE', 'RESPOND')),
    epoch       integer NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, step_id),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE
);

CREATE TABLE events (
    session_id text COLLATE "C" NOT NULL,
    seq        bigint NOT NULL CHECK (seq >= 1),
    org_id     text COLLATE "C" NOT NULL,
    run_id     text COLLATE "C" NOT NULL,
    type       text NOT NULL,
    data       json NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (session_id, seq),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX events_one_done ON events (run_id) WHERE type = 'done';

-- Opaque to all but the checkpointer. One thread per run and sub-agent path.
CREATE TABLE checkpoints (
    org_id        text COLLATE "C" NOT NULL,
    thread_id     text COLLATE "C" NOT NULL,
    checkpoint_ns text COLLATE "C" NOT NULL DEFAULT '',
    checkpoint_id text COLLATE "C" NOT NULL,
    parent_id     text COLLATE "C",
    run_id        text COLLATE "C",
    format        text NOT NULL,
    checkpoint    bytea NOT NULL,
    metadata      bytea NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, thread_id, checkpoint_ns, checkpoint_id)
);
CREATE INDEX checkpoints_run ON checkpoints (org_id, run_id);

CREATE TABLE checkpoint_writes (
    org_id        text COLLATE "C" NOT NULL,
    thread_id     text COLLATE "C" NOT NULL,
    checkpoint_ns text COLLATE "C" NOT NULL DEFAULT '',
    checkpoint_id text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    idx           integer NOT NULL,
    channel       text NOT NULL,
    format        text NOT NULL,
    value         bytea NOT NULL,
    task_path     text NOT NULL DEFAULT '',
    PRIMARY KEY (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);

CREATE TABLE idempotency_keys (
    org_id       text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    key          text COLLATE "C" NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    route        text NOT NULL,
    request_hash bytea NOT NULL,
    status       integer NOT NULL,
    body         json NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE workers (
    id         text COLLATE "C" PRIMARY KEY,
    host       text NOT NULL,
    pid        integer NOT NULL,
    slots      integer NOT NULL CHECK (slots >= 1),
    running    integer NOT NULL CHECK (running >= 0),
    figures    json NOT NULL DEFAULT '{}',  -- counters since it started, for /metrics
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
);

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

-- The group commit of one worker: what all its runs have pending, in one call and one transaction.
--
-- Slice i is the pending work of one run: p_runs[i] in p_sessions[i] under p_epochs[i], its batch number
-- p_batches[i] (counting from 1 in each epoch) and its number of events p_counts[i]. Events name their slice
-- and their place in it (from 1). Slices come sorted by session, so that two workers lock in one order.
-- A slice is returned as 'committed' with its first seq, or as 'repeated' if this very batch is in already,
-- or as 'refused' if the epoch is over: nothing of a refused slice is written.
CREATE FUNCTION journal_commit(
    p_runs text[], p_sessions text[], p_epochs integer[], p_batches integer[], p_counts integer[],
    p_event_slices integer[], p_event_places integer[], p_event_types text[], p_event_data text[],
    p_messages json, p_steps json, p_ends json,
    p_checkpoint_slices integer[], p_threads text[], p_namespaces text[], p_checkpoint_ids text[],
    p_parent_ids text[], p_formats text[], p_checkpoints bytea[], p_metadata bytea[],
    p_write_slices integer[], p_write_threads text[], p_write_namespaces text[], p_write_checkpoint_ids text[],
    p_task_ids text[], p_indexes integer[], p_channels text[], p_write_formats text[], p_values bytea[],
    p_task_paths text[])
RETURNS TABLE (slice integer, outcome text, first_seq bigint, at timestamptz, next_run text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_at timestamptz := clock_timestamp();
    v_bases bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_runs)]);
    v_orgs text[] := array_fill(NULL::text, ARRAY[cardinality(p_runs)]);
    v_outcomes text[] := array_fill('refused'::text, ARRAY[cardinality(p_runs)]);
    v_next text[] := array_fill(NULL::text, ARRAY[cardinality(p_runs)]);
    v_base bigint;
    v_org text;
    v_end record;
BEGIN
    FOR i IN 1 .. cardinality(p_runs) LOOP
        UPDATE sessions SET last_seq = last_seq + p_counts[i], head_batch = p_batches[i]
        WHERE id = p_sessions[i] AND head_run_id = p_runs[i] AND head_epoch = p_epochs[i]
              AND head_batch = p_batches[i] - 1
        RETURNING last_seq - p_counts[i], org_id INTO v_base, v_org;
        IF FOUND THEN
            v_bases[i] := v_base;
            v_orgs[i] := v_org;
            v_outcomes[i] := 'committed';
        ELSE
            -- a batch that ended the run has moved the head on: then the run's own record tells
            PERFORM 1 FROM sessions WHERE id = p_sessions[i] AND head_run_id = p_runs[i]
                AND head_epoch = p_epochs[i] AND head_batch = p_batches[i];
            IF NOT FOUND THEN
                PERFORM 1 FROM runs WHERE id = p_runs[i] AND epoch = p_epochs[i] AND last_batch = p_batches[i];
            END IF;
            IF FOUND THEN
                v_outcomes[i] := 'repeated';
            END IF;
        END IF;
    END LOOP;

    INSERT INTO events (session_id, seq, org_id, run_id, type, data, at)
    SELECT p_sessions[e.slice], v_bases[e.slice] + e.place, v_orgs[e.slice], p_runs[e.slice], e.type,
           e.data::json, v_at
    FROM unnest(p_event_slices, p_event_places, p_event_types, p_event_data) AS e (slice, place, type, data)
    WHERE v_bases[e.slice] IS NOT NULL;

    IF p_messages IS NOT NULL THEN
        INSERT INTO messages (session_id, turn, path, position, id, org_id, run_id, role, content, tool_calls,
                              tool_call_id, created_at)
        SELECT p_sessions[m.slice], m.turn, m.path, m.position, m.id, v_orgs[m.slice], p_runs[m.slice], m.role,
               m.content, m.tool_calls, m.tool_call_id, v_at
        FROM json_to_recordset(p_messages) AS m (slice integer, turn integer, path text, position integer,
             id text, role text, content json, tool_calls json, tool_call_id text)
        WHERE v_bases[m.slice] IS NOT NULL
        ON CONFLICT (session_id, turn, path, position) DO UPDATE  -- a step that an earlier attempt began
        SET id = excluded.id, role = excluded.role, content = excluded.content, tool_calls = excluded.tool_calls,
            tool_call_id = excluded.tool_call_id, created_at = excluded.created_at;
    END IF;

    IF p_steps IS NOT NULL THEN
        INSERT INTO steps (run_id, step_id, org_id, path, state, epoch, started_at, finished_at)
        SELECT p_runs[s.slice], s.step_id, v_orgs[s.slice], s.path, s.state, p_epochs[s.slice],
               v_at - make_interval(secs => s.seconds), v_at
        FROM json_to_recordset(p_steps) AS s (slice integer, step_id text, path text, state text,
             seconds double precision)
        WHERE v_bases[s.slice] IS NOT NULL
        ON CONFLICT (run_id, step_id) DO UPDATE
        SET epoch = excluded.epoch, started_at = excluded.started_at, finished_at = excluded.finished_at;
    END IF;

    IF cardinality(p_checkpoint_slices) > 0 THEN
        INSERT INTO checkpoints (org_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, run_id, format,
                                 checkpoint, metadata)
        SELECT v_orgs[c.slice], c.thread, c.ns, c.id, c.parent, p_runs[c.slice], c.format, c.checkpoint, c.metadata
        FROM unnest(p_checkpoint_slices, p_threads, p_namespaces, p_checkpoint_ids, p_parent_ids, p_formats,
                    p_checkpoints, p_metadata)
             AS c (slice, thread, ns, id, parent, format, checkpoint, metadata)
        WHERE v_bases[c.slice] IS NOT NULL
        ON CONFLICT (org_id, thread_id, checkpoint_ns, checkpoint_id) DO UPDATE
        SET checkpoint = excluded.checkpoint, metadata = excluded.metadata, format = excluded.format;
    END IF;

    IF cardinality(p_write_slices) > 0 THEN
        INSERT INTO checkpoint_writes (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel,
                                       format, value, task_path)
        SELECT v_orgs[w.slice], w.thread, w.ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.format, w.value,
               w.task_path
        FROM unnest(p_write_slices, p_write_threads, p_write_namespaces, p_write_checkpoint_ids, p_task_ids,
                    p_indexes, p_channels, p_write_formats, p_values, p_task_paths)
             AS w (slice, thread, ns, checkpoint_id, task_id, idx, channel, format, value, task_path)
        WHERE v_bases[w.slice] IS NOT NULL
        ON CONFLICT (org_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE
        SET channel = excluded.channel, format = excluded.format, value = excluded.value;
    END IF;

    IF p_ends IS NOT NULL THEN
        FOR v_end IN
            SELECT * FROM json_to_recordset(p_ends)
                AS e (slice integer, status text, finish_reason text, usage json, error json)
        LOOP
            IF v_bases[v_end.slice] IS NOT NULL THEN
                UPDATE runs SET last_batch = p_batches[v_end.slice] WHERE id = p_runs[v_end.slice];
                v_next[v_end.slice] := end_run(p_runs[v_end.slice], v_end.status, v_end.finish_reason,
                                               v_end.usage, v_end.error, v_at);
            END IF;
        END LOOP;
    END IF;

    RETURN QUERY SELECT i, v_outcomes[i], v_bases[i] + 1, v_at, v_next[i]
                 FROM generate_series(1, cardinality(p_runs)) AS i;
END $$;
