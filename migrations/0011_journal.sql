-- The group commit of one worker: what all its runs have pending, in one call and one transaction. Beyond what the
-- function of the same name with fewer parameters does, it takes approvals down that a run asks for, and lets runs rest
-- until one of them is decided.
--
-- Slice i is the pending work of one run: p_runs[i] in p_sessions[i] under p_epochs[i], its batch number
-- p_batches[i] (counting from 1 in each epoch) and its number of events p_counts[i]. Events name their slice
-- and their place in it (from 1). Slices come sorted by session, so that two workers lock in one order.
-- A slice is returned as 'committed' with its first seq, or as 'repeated' if this very batch is in already,
-- or as 'refused' if the epoch is over: nothing of a refused slice is written.
CREATE FUNCTION journal_commit(
    p_runs text[], p_sessions text[], p_epochs integer[], p_batches integer[], p_counts integer[],
    p_event_slices integer[], p_event_places integer[], p_event_types text[], p_event_data text[],
    p_messages json, p_steps json, p_effects json, p_approvals json, p_rests json, p_ends json,
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
    v_rest record;
    v_undecided boolean;
    v_claimable text;
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

    IF p_effects IS NOT NULL THEN
        INSERT INTO effects (run_id, step_id, call_id, org_id, path, position, tool, effect, status, epoch,
                             executions, started_at, finished_at)
        SELECT p_runs[f.slice], f.step_id, f.call_id, v_orgs[f.slice], f.path, f.position, f.tool, f.effect, f.status,
               p_epochs[f.slice], f.starts, v_at, CASE WHEN f.status <> 'started' THEN v_at END
        FROM json_to_recordset(p_effects) AS f (slice integer, step_id text, call_id text, path text,
             position integer, tool text, effect text, status text, starts integer)
        WHERE v_bases[f.slice] IS NOT NULL
        ON CONFLICT (run_id, step_id, call_id) DO UPDATE
        SET status = excluded.status, epoch = excluded.epoch, finished_at = excluded.finished_at,
            executions = effects.executions + excluded.executions;
    END IF;

    IF p_approvals IS NOT NULL THEN
        INSERT INTO approvals (id, org_id, run_id, session_id, step_id, call_id, path, kind, name, arguments, prompt,
                               schema, max_bytes, role, approvers, on_expiry, expires_at, escalate_at, escalate_role,
                               created_at)
        SELECT a.id, v_orgs[a.slice], p_runs[a.slice], p_sessions[a.slice], a.step_id, a.call_id, a.path, a.kind, a.name,
               a.arguments, a.prompt, a.schema, a.max_bytes, a.role, a.approvers, a.on_expiry,
               v_at + make_interval(secs => a.expires_seconds), v_at + make_interval(secs => a.escalate_seconds),
               a.escalate_role, v_at
        FROM json_to_recordset(p_approvals) AS a (slice integer, id text, step_id text, call_id text, path text,
             kind text, name text, arguments json, prompt text, schema json, max_bytes integer, role text,
             approvers integer, on_expiry text, expires_seconds double precision, escalate_seconds double precision,
             escalate_role text)
        WHERE v_bases[a.slice] IS NOT NULL;
        -- the event at `place` says when it expires, by our clock
        UPDATE events e
        SET data = format('%s,"expires_at":"%s"}', left(e.data::text, -1),
                          to_char((v_at + make_interval(secs => a.expires_seconds)) AT TIME ZONE 'UTC',
                                  'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::json
        FROM json_to_recordset(p_approvals) AS a (slice integer, place integer, expires_seconds double precision)
        WHERE v_bases[a.slice] IS NOT NULL AND e.session_id = p_sessions[a.slice]
              AND e.seq = v_bases[a.slice] + a.place;
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

    IF p_ends IS NOT NULL AND p_rests IS NOT NULL THEN
        -- in the order in which leases are renewed; either kind by itself comes in it anyway
        PERFORM 1 FROM runs WHERE id IN (SELECT p_runs[x.slice] FROM json_to_recordset(p_ends) AS x (slice integer)
                                         UNION SELECT p_runs[x.slice] FROM json_to_recordset(p_rests) AS x (slice integer))
        ORDER BY session_id FOR NO KEY UPDATE;
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

    IF p_rests IS NOT NULL THEN
        FOR v_rest IN SELECT * FROM json_to_recordset(p_rests) AS x (slice integer, because text, open text[]) LOOP
            IF v_bases[v_rest.slice] IS NOT NULL THEN
                UPDATE sessions SET head_epoch = 0, head_batch = 0 WHERE id = p_sessions[v_rest.slice];
                -- what it waits for may have been decided while it came to rest
                v_undecided := v_rest.because = 'approval' AND cardinality(v_rest.open) > 0
                    AND NOT EXISTS (SELECT FROM unnest(v_rest.open) AS o (id) LEFT JOIN approvals a ON a.id = o.id
                                    WHERE a.status IS DISTINCT FROM 'pending');
                -- and somebody may have asked for more
                UPDATE runs SET last_batch = p_batches[v_rest.slice], worker = NULL, lease_until = NULL,
                                left_because = CASE WHEN v_undecided OR pause_requested_at IS NULL THEN v_rest.because
                                                    ELSE 'paused' END,
                                status = CASE WHEN cancel_requested_at IS NULL
                                                   AND (v_undecided OR pause_requested_at IS NOT NULL)
                                              THEN 'waiting' ELSE 'queued' END
                WHERE id = p_runs[v_rest.slice]
                RETURNING CASE status WHEN 'queued' THEN id END INTO v_claimable;
                v_next[v_rest.slice] := v_claimable;
            END IF;
        END LOOP;
    END IF;

    RETURN QUERY SELECT i, v_outcomes[i], v_bases[i] + 1, v_at, v_next[i]
                 FROM generate_series(1, cardinality(p_runs)) AS i;
END $$;

-- Served the release before the last one.
DROP FUNCTION journal_commit(
    text[], text[], integer[], integer[], integer[], integer[], integer[], text[], text[], json, json, json,
    integer[], text[], text[], text[], text[], text[], bytea[], bytea[],
    integer[], text[], text[], text[], text[], integer[], text[], text[], bytea[], text[]);
DROP FUNCTION submit_run(
    text, text, text, boolean, text, text, text, json, json, text, text[], text[], text[]);
DROP FUNCTION next_vtag(text, double precision);
