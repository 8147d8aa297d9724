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
