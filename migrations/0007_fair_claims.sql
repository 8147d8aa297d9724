-- Fair claims: who starts next. Start-time fair queuing over orgs (Goyal, Vin, Cheng 1996) under caps per org and agent,
-- with priorities inside an org; docs/decisions/0010-fair-claims.md says what of it is exact.
--
-- Each org has a place in virtual time; the org with the lowest place starts next, and moves on by 1/weight for it.
-- A place is the later of its lane and the place after its running runs, whose tags (runs.vtag) say where they
-- started. So a claim writes to nothing that two claims share. What runs use moves their org's lane on, a little later.

ALTER TABLE orgs ADD COLUMN max_running integer CHECK (max_running >= 0);    -- NULL: as many as there are slots
ALTER TABLE agents ADD COLUMN max_running integer CHECK (max_running >= 1);  -- of the newest version's limits

-- Of a worker's runs whose owners died twice in a row or more often: whether it is the only one.
ALTER TABLE runs ADD COLUMN alone boolean NOT NULL DEFAULT false;
CREATE INDEX runs_suspected ON runs (worker) WHERE status = 'running' AND deaths > 1;

-- Where an org's charges have brought it, and their sum in units (see kernel/shares.py).
CREATE TABLE lanes (
    org_id  text COLLATE "C" PRIMARY KEY REFERENCES orgs ON DELETE CASCADE,
    vtime   double precision NOT NULL,
    charged double precision NOT NULL CHECK (charged >= 0)
) WITH (fillfactor = 50);
CREATE INDEX lanes_vtime ON lanes (vtime);

-- Virtual time at the last charge: without it an idle moment would set it back, and a new org would overtake all.
CREATE TABLE lane_clock (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    vtime double precision NOT NULL
);
INSERT INTO lane_clock (vtime) SELECT coalesce(max(vtag), 0) FROM runs WHERE status = 'running';

-- Runs that may be claimed, by org and agent, each with its own in the order of their claims. Reversed, ids are spread
-- evenly, so that a random place to start a search from favours nobody.
CREATE INDEX runs_waiting ON runs (reverse(org_id), reverse(agent_id), (-priority), id)
    WHERE head AND status = 'queued' AND pause_requested_at IS NULL;
-- Of these, the ones that had a slot already and lost it by no fault of their own.
CREATE INDEX runs_interrupted ON runs (id)
    WHERE head AND status = 'queued' AND pause_requested_at IS NULL AND left_because IN ('drained', 'store_away');
CREATE INDEX runs_in_lanes ON runs (org_id, vtag) WHERE status = 'running';
-- Not even these: they stand behind another run of their session.
CREATE INDEX runs_behind ON runs (org_id) WHERE status = 'queued' AND NOT head;
DROP INDEX runs_claimable, runs_org_vtag;

-- The release before this one gives tags when it takes runs in. They count for nothing any more.
CREATE OR REPLACE FUNCTION next_vtag(p_org text, p_weight double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE AS $$ SELECT NULL::double precision $$;

-- The functions in SQL below are parts of the statements of those in PL/pgSQL: Postgres puts their text there.

-- How many waiting orgs a claim looks at, so that its cost has a bound. Beyond that it sees a random part of them.
CREATE FUNCTION most_lanes() RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT 128 $$;

-- Up to p_most orgs with claimable runs, each with the first of these; those from p_start on (a reversed id) first.
-- A loose index scan: one probe for each org, however many runs it has.
CREATE FUNCTION waiting_orgs(p_start text, p_most integer)
RETURNS TABLE (lane text, org_id text, agent text, rank integer, id text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE later AS (
        (SELECT reverse(r.org_id) AS lane, r.org_id, reverse(r.agent_id) AS agent, -r.priority AS rank, r.id
         FROM runs r
         WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL AND reverse(r.org_id) >= p_start
         ORDER BY reverse(r.org_id), reverse(r.agent_id), -r.priority, r.id LIMIT 1)
        UNION ALL
        SELECT n.* FROM later, LATERAL (
            SELECT reverse(r.org_id), r.org_id, reverse(r.agent_id), -r.priority, r.id
            FROM runs r
            WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL AND reverse(r.org_id) > later.lane
            ORDER BY reverse(r.org_id), reverse(r.agent_id), -r.priority, r.id LIMIT 1) n
    ), earlier AS (
        (SELECT reverse(r.org_id) AS lane, r.org_id, reverse(r.agent_id) AS agent, -r.priority AS rank, r.id
         FROM runs r
         WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL AND reverse(r.org_id) < p_start
         ORDER BY reverse(r.org_id), reverse(r.agent_id), -r.priority, r.id LIMIT 1)
        UNION ALL
        SELECT n.* FROM earlier, LATERAL (
            SELECT reverse(r.org_id), r.org_id, reverse(r.agent_id), -r.priority, r.id
            FROM runs r
            WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL AND reverse(r.org_id) < p_start
              AND reverse(r.org_id) > earlier.lane
            ORDER BY reverse(r.org_id), reverse(r.agent_id), -r.priority, r.id LIMIT 1) n
    )
    SELECT * FROM (SELECT * FROM later UNION ALL SELECT * FROM earlier) AS found LIMIT p_most
$$;

-- The same for the agents of one org, which waiting_orgs has found with its first run.
CREATE FUNCTION waiting_agents(p_lane text, p_agent text, p_rank integer, p_id text, p_start text, p_most integer)
RETURNS TABLE (agent text, agent_id text, rank integer, id text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE later AS (
        (SELECT reverse(r.agent_id) AS agent, r.agent_id, -r.priority AS rank, r.id
         FROM runs r
         WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
           AND reverse(r.org_id) = p_lane AND reverse(r.agent_id) >= p_start AND p_start > p_agent
         ORDER BY reverse(r.agent_id), -r.priority, r.id LIMIT 1)
        UNION ALL
        SELECT n.* FROM later, LATERAL (
            SELECT reverse(r.agent_id), r.agent_id, -r.priority, r.id
            FROM runs r
            WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
              AND reverse(r.org_id) = p_lane AND reverse(r.agent_id) > later.agent
            ORDER BY reverse(r.agent_id), -r.priority, r.id LIMIT 1) n
    ), earlier AS (
        SELECT p_agent COLLATE "C" AS agent, reverse(p_agent) COLLATE "C" AS agent_id, p_rank AS rank,
               p_id COLLATE "C" AS id
        UNION ALL
        SELECT n.* FROM earlier, LATERAL (
            SELECT reverse(r.agent_id), r.agent_id, -r.priority, r.id
            FROM runs r
            WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
              AND reverse(r.org_id) = p_lane AND reverse(r.agent_id) > earlier.agent
              AND reverse(r.agent_id) < CASE WHEN p_start <= p_agent THEN 'z' ELSE p_start END
            ORDER BY reverse(r.agent_id), -r.priority, r.id LIMIT 1) n
    )
    SELECT * FROM (SELECT * FROM later UNION ALL SELECT * FROM earlier) AS found LIMIT p_most
$$;

-- How many more runs may run under a cap of p_cap (NULL: none), of an org or of one of its agents.
CREATE FUNCTION room_in_org(p_org text, p_cap integer) RETURNS TABLE (room bigint)
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_cap IS NULL THEN 1000000 ELSE
        p_cap - (SELECT count(*) FROM (SELECT FROM runs r WHERE r.org_id = p_org AND r.status = 'running' LIMIT p_cap) x)
    END
$$;
CREATE FUNCTION room_for_agent(p_org text, p_agent text, p_cap integer) RETURNS TABLE (room bigint)
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_cap IS NULL THEN 1000000 ELSE
        p_cap - (SELECT count(*) FROM (SELECT FROM runs r WHERE r.org_id = p_org AND r.status = 'running'
                                       AND r.agent_id = p_agent LIMIT p_cap) x)
    END
$$;

-- Virtual time: that of the last charge, or the greatest tag in service since.
CREATE FUNCTION virtual_time() RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT greatest(c.vtime, (SELECT max(r.vtag) FROM runs r WHERE r.status = 'running' AND r.vtag > c.vtime))
    FROM lane_clock c WHERE c.one
$$;

-- The place of an org, NULL if it was never charged and runs nothing. Of its running runs only those with tags above
-- p_above are looked at.
CREATE FUNCTION place_of(p_org text, p_weight double precision, p_above double precision)
RETURNS TABLE (place double precision)
LANGUAGE sql STABLE AS $$
    SELECT greatest((SELECT l.vtime FROM lanes l WHERE l.org_id = p_org),
                    (SELECT max(r.vtag) FROM runs r WHERE r.org_id = p_org AND r.status = 'running'
                                                      AND r.vtag > p_above - 1 / p_weight) + 1 / p_weight)
$$;

-- Orgs with claimable runs and room for one more, at virtual time p_vtime.
CREATE FUNCTION open_lanes(p_start text, p_vtime double precision)
RETURNS TABLE (lane text, org_id text, agent text, rank integer, id text, weight double precision, cap integer,
               room bigint, place double precision)
LANGUAGE sql STABLE AS $$
    SELECT w.lane, w.org_id, w.agent, w.rank, w.id, o.weight, o.max_running, room.room, p.place
    FROM waiting_orgs(p_start, most_lanes()) w JOIN orgs o ON o.id = w.org_id,
         LATERAL room_in_org(o.id, o.max_running) room, LATERAL place_of(o.id, o.weight, p_vtime) p
    WHERE room.room > 0
$$;

-- The p_most runs to start next, from the p_orgs lowest lanes, without locks: when they are claimed, one may be gone
-- and a cap be reached.
CREATE FUNCTION fairest_runs(p_start text, p_vtime double precision, p_most integer, p_orgs integer, p_graph integer)
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
                          AND coalesce(r.left_because, 'paused') = 'paused'
                          AND (r.deadline_at IS NULL OR r.deadline_at > now())  -- else it is about to be ended
                        ORDER BY -r.priority, r.id LIMIT least(p_most, lowest.room, room.room)) q
         ) AS f
    WHERE f.nth <= f.room
    ORDER BY tag, f.id LIMIT p_most
$$;

-- Of candidates (dead runs, which count as running already, and queued ones) those that fit under the caps of their
-- orgs and agents. Exact: what is counted here stands still until this transaction ends, under a lock for each cap. The
-- locks are taken in one order; a claim that has some already (p_wait false) takes only what it gets at once.
CREATE FUNCTION within_caps(p_wait boolean, INOUT ids text[], INOUT tags double precision[])
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_cap record;
    v_full text[] := '{}';
BEGIN
    FOR v_cap IN
        SELECT DISTINCT c.kind, hashtext(c.id) AS key, c.id
        FROM runs r JOIN orgs o ON o.id = r.org_id JOIN agents a ON a.id = r.agent_id,
             LATERAL (VALUES (1, o.id, o.max_running), (2, a.id, a.max_running)) AS c (kind, id, cap)
        WHERE r.id = ANY (ids) AND r.status = 'queued' AND c.cap IS NOT NULL
        ORDER BY 1, 2, 3
    LOOP
        IF p_wait THEN
            PERFORM pg_advisory_xact_lock(v_cap.kind, v_cap.key);
        ELSIF NOT pg_try_advisory_xact_lock(v_cap.kind, v_cap.key) THEN
            v_full := v_full || v_cap.id;
        END IF;
    END LOOP;
    SELECT array_agg(f.id ORDER BY f.nth), array_agg(f.tag ORDER BY f.nth) INTO ids, tags
    FROM (SELECT c.*, row_number() OVER (PARTITION BY c.org_id, c.queued ORDER BY c.nth) AS nth_of_org
          FROM (SELECT u.id, u.tag, u.nth, r.org_id, r.agent_id, r.status = 'queued' AS queued, o.max_running,
                       row_number() OVER (PARTITION BY r.agent_id, r.status = 'queued' ORDER BY u.nth) AS nth_of_agent,
                       a.max_running AS agent_cap
                FROM unnest(ids, tags) WITH ORDINALITY AS u (id, tag, nth)
                     JOIN runs r ON r.id = u.id JOIN orgs o ON o.id = r.org_id JOIN agents a ON a.id = r.agent_id
               ) AS c, LATERAL room_for_agent(c.org_id, c.agent_id, c.agent_cap) AS room
          WHERE NOT c.queued OR c.nth_of_agent <= room.room AND c.agent_id <> ALL (v_full)
         ) AS f, LATERAL room_in_org(f.org_id, f.max_running) AS room
    WHERE NOT f.queued OR f.nth_of_org <= room.room AND f.org_id <> ALL (v_full);
END $$;

-- Claims up to p_limit runs for a worker under leases of p_lease seconds, and comes back with all that is needed to
-- start them: runs whose owner has died, then those that were handed back, then the fairest. Rows that others hold
-- right now are passed over: nothing is waited for but another claim under the same cap. p_mine are runs that the
-- worker still has, though their leases may have run out: it renews or loses them. Runs of a graph newer than p_graph
-- are left to newer workers, and those whose owner has died to others where p_take_over is false.
--
-- A run whose owners died three times in a row, without a finished step between, may be what killed them. It is
-- convicted if it was the only run on its last worker whose owners had died before like that. Else it is a suspect:
-- they are claimed one at a time, and none where p_take_suspect is false, so that those who merely died beside the
-- one that kills are not parked with it.
CREATE FUNCTION claim_runs(
    p_worker text, p_limit integer, p_lease double precision, p_history integer, p_mine text[], p_graph integer,
    p_take_over boolean DEFAULT true, p_take_suspect boolean DEFAULT true)
RETURNS TABLE (
    id text, org_id text, session_id text, turn integer, agent_id text, agent_version integer, workflow text,
    user_id text, request json, epoch integer, attempt integer, deaths smallint, graph_version integer, left_by text,
    first_seq bigint, cancelled boolean, paused boolean, convicted boolean, pickup_seconds double precision,
    seconds_left double precision, vtag double precision, capped boolean, config json, history json, messages json)
LANGUAGE plpgsql
-- Plans that suit queues of any length, whatever the statistics say of them just now.
SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = 'off' SET enable_bitmapscan = 'off'
SET enable_sort = 'off' SET enable_hashjoin = 'off' SET enable_mergejoin = 'off' SET jit = 'off'
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_vtime double precision;
    v_start text;
    v_left integer := p_limit;
    v_most integer := p_limit + 4;  -- a few more than wanted, for some may be in other hands
    v_orgs integer := p_limit + 3;
    v_ids text[];
    v_tags double precision[];
    v_capped boolean;
    v_count integer;
BEGIN
    -- Held up on its way: a worker that could not reach us for most of a lease has given it up, and can't judge others.
    PERFORM FROM workers w WHERE w.id = p_worker AND w.seen_at < clock_timestamp() - make_interval(secs => 0.6 * p_lease);
    IF FOUND THEN
        RETURN;
    END IF;
    FOR v_try IN 1 .. 3 LOOP
        v_now := clock_timestamp();
        v_vtime := virtual_time();
        v_start := lpad(to_hex((random() * 4294967295)::bigint), 8, '0');
        SELECT array_agg(f.id ORDER BY f.kind, f.tag, f.id), array_agg(f.tag ORDER BY f.kind, f.tag, f.id),
               bool_or(f.capped)
        INTO v_ids, v_tags, v_capped
        FROM ((SELECT 0 AS kind, d.id, d.vtag AS tag, false AS capped
               FROM (SELECT r.id, r.vtag, r.lease_until, suspect.yes AS suspect,
                            row_number() OVER (PARTITION BY suspect.yes ORDER BY r.lease_until) AS nth
                     FROM runs r,
                          LATERAL (SELECT r.deaths > 1 AND NOT r.alone
                                          AND NOT EXISTS (SELECT FROM steps p WHERE p.run_id = r.id
                                                          AND p.epoch = r.epoch) AS yes) AS suspect
                     WHERE p_take_over AND r.status = 'running' AND r.lease_until < v_now AND r.id <> ALL (p_mine)
                       AND coalesce(r.graph_version, 1) <= p_graph
                    ) AS d
               WHERE NOT d.suspect OR d.nth = 1 AND p_take_suspect AND v_try = 1
               ORDER BY d.lease_until LIMIT v_most)
              UNION ALL
              (SELECT 1, r.id, r.vtag, o.max_running IS NOT NULL OR a.max_running IS NOT NULL
               FROM runs r JOIN orgs o ON o.id = r.org_id JOIN agents a ON a.id = r.agent_id,
                    LATERAL room_in_org(o.id, o.max_running) AS in_org,  -- a full cap must not hide the others
                    LATERAL room_for_agent(o.id, a.id, a.max_running) AS for_agent
               WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
                 AND r.left_because IN ('drained', 'store_away') AND coalesce(r.graph_version, 1) <= p_graph
                 AND (r.deadline_at IS NULL OR r.deadline_at > now()) AND in_org.room > 0 AND for_agent.room > 0
               ORDER BY r.id LIMIT v_most)
              UNION ALL
              SELECT 2, c.id, c.tag, c.org_cap IS NOT NULL OR c.agent_cap IS NOT NULL
              FROM fairest_runs(v_start, v_vtime, v_most, v_orgs, p_graph) c
             ) AS f;
        IF v_capped THEN
            SELECT c.ids, c.tags INTO v_ids, v_tags FROM within_caps(v_try = 1, v_ids, v_tags) c;
        END IF;

        IF v_ids IS NOT NULL THEN
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT r.id, u.tag, u.nth, r.status = 'running' AS died, r.alone, r.left_because
                FROM unnest(v_ids, v_tags) WITH ORDINALITY AS u (id, tag, nth)
                     JOIN runs r ON r.id = u.id JOIN sessions s ON s.id = r.session_id
                WHERE CASE r.status WHEN 'running' THEN r.lease_until < v_now
                                    WHEN 'queued' THEN r.head AND r.pause_requested_at IS NULL END
                ORDER BY u.nth LIMIT v_left FOR NO KEY UPDATE OF r, s SKIP LOCKED
            ), claimed AS (
                UPDATE runs r
                SET status = 'running', worker = p_worker, epoch = r.epoch + 1,
                    attempt = r.attempt + (r.left_because IS NULL)::integer,  -- handed back, it goes on with its attempt
                    lease_until = clock_timestamp() + make_interval(secs => p_lease),
                    started_at = coalesce(r.started_at, clock_timestamp()),
                    graph_version = coalesce(r.graph_version, p_graph),
                    vtag = coalesce(picked.tag, v_vtime),
                    deadline_at = CASE WHEN r.epoch > 0 THEN r.deadline_at ELSE least(r.deadline_at,
                        clock_timestamp() + make_interval(secs => least(
                            (v.config -> 'limits' ->> 'timeout_seconds')::double precision,
                            (r.request -> 'budget' ->> 'timeout_seconds')::double precision))) END,
                    -- deaths count in a row: an owner that finished a step has brought the run on
                    deaths = CASE WHEN NOT picked.died THEN r.deaths
                                  WHEN EXISTS (SELECT FROM steps WHERE run_id = r.id AND epoch = r.epoch) THEN 1
                                  ELSE r.deaths + 1 END,
                    alone = false,
                    left_because = NULL, last_batch = NULL  -- else it would answer for a late batch of this owner
                FROM picked, agent_versions v
                WHERE r.id = picked.id AND v.agent_id = r.agent_id AND v.version = r.agent_version
                RETURNING r.*, v.config, picked.nth, picked.died AND picked.alone AND r.deaths > 2 AS convicted,
                          CASE WHEN picked.died THEN 'died' ELSE picked.left_because END AS left_by
            ), fenced AS (
                UPDATE sessions s SET head_epoch = c.epoch, head_batch = 0 FROM claimed c WHERE s.id = c.session_id
            )
            SELECT c.id, c.org_id, c.session_id, c.turn, c.agent_id, c.agent_version, c.workflow, c.user_id, c.request,
                   c.epoch, c.attempt, c.deaths, c.graph_version, c.left_by, c.first_seq,
                   c.cancel_requested_at IS NOT NULL, c.pause_requested_at IS NOT NULL, c.convicted,
                   extract(epoch FROM c.started_at - c.created_at)::double precision,
                   extract(epoch FROM c.deadline_at - clock_timestamp())::double precision, c.vtag,
                   (SELECT o.max_running IS NOT NULL FROM orgs o WHERE o.id = c.org_id)
                       OR (SELECT a.max_running IS NOT NULL FROM agents a WHERE a.id = c.agent_id),
                   c.config,
                   (SELECT json_agg(json_build_object('role', m.role, 'content', m.content)
                                    ORDER BY m.turn, m.position)
                    FROM (SELECT turn, position, role, content FROM messages
                          WHERE session_id = c.session_id AND turn < c.turn AND path = ''
                            AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
                          ORDER BY turn DESC, position DESC LIMIT p_history) AS m),
                   (SELECT json_agg(json_build_object('path', m.path, 'position', m.position, 'id', m.id,
                                        'role', m.role, 'content', m.content, 'tool_calls', m.tool_calls,
                                        'tool_call_id', m.tool_call_id) ORDER BY m.path, m.position)
                    FROM messages m WHERE m.session_id = c.session_id AND m.turn = c.turn)
            FROM claimed c
            ORDER BY c.nth;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            v_left := v_left - v_count;
        END IF;

        EXIT WHEN v_left = 0;
        PERFORM FROM runs r WHERE r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL
        ORDER BY reverse(r.org_id), reverse(r.agent_id), -r.priority, r.id LIMIT 1;
        EXIT WHEN NOT FOUND;
        v_most := v_left + 256;
        v_orgs := most_lanes();
    END LOOP;

    UPDATE runs r SET alone = those.count = 1
    FROM (SELECT count(*) FROM runs m WHERE m.worker = p_worker AND m.status = 'running' AND m.deaths > 1) AS those
    WHERE r.worker = p_worker AND r.status = 'running' AND r.deaths > 1 AND r.alone <> (those.count = 1);
END $$;

-- Moves lanes on by what runs of their orgs have used: p_orgs[i], whose greatest tag among these runs is p_tags[i],
-- has used p_costs[i] units. Each org is named once.
CREATE FUNCTION charge_lanes(p_orgs text[], p_tags double precision[], p_costs double precision[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = 'off' SET enable_bitmapscan = 'off'
SET enable_sort = 'off' SET enable_hashjoin = 'off' SET enable_mergejoin = 'off' SET jit = 'off'
AS $$
DECLARE
    v_vtime double precision := virtual_time();
    v_waiting integer;
    v_lowest double precision;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- what a crash undoes is worth less than the wait
    INSERT INTO lanes AS l (org_id, vtime, charged)
    SELECT o.id, greatest(c.tag + 1 / o.weight, p.place) + c.cost / o.weight, c.cost
    FROM unnest(p_orgs, p_tags, p_costs) AS c (org_id, tag, cost) JOIN orgs o ON o.id = c.org_id,
         LATERAL place_of(o.id, o.weight, c.tag) p
    ORDER BY o.id  -- everybody locks in this order
    ON CONFLICT (org_id) DO UPDATE
    SET vtime = greatest(excluded.vtime,
                         l.vtime + excluded.charged / (SELECT o.weight FROM orgs o WHERE o.id = l.org_id)),
        charged = l.charged + excluded.charged;

    -- Time goes on to the lowest place of those that wait, and where nobody waits, past all: who used slots that nobody
    -- else wanted owes nothing.
    SELECT count(*), min(coalesce(l.place, '-infinity')) INTO v_waiting, v_lowest
    FROM open_lanes(lpad(to_hex((random() * 4294967295)::bigint), 8, '0'), v_vtime) l;
    IF v_waiting = 0 THEN
        SELECT max(l.vtime) INTO v_lowest FROM lanes l;
    ELSIF v_waiting = most_lanes() THEN
        v_lowest := NULL;  -- there may be a lower one
    END IF;
    v_vtime := greatest(v_vtime, v_lowest, (SELECT max(tag) FROM unnest(p_tags) AS tag));
    UPDATE lane_clock SET vtime = v_vtime WHERE one AND vtime < v_vtime;
END $$;
