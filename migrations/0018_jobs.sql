-- Work in the background: what has to be done some time after it was asked for, by any worker, once.
--
-- A job is taken under a lease and an attempt number; one whose worker died is taken again when the lease is over. What
-- fails is tried again later, with more patience each time, and left as `failed` after its last attempt.

CREATE TABLE jobs (
    id          text COLLATE "C" PRIMARY KEY CHECK (id ~ '^job_[0-9a-f]{32}$'),
    org_id      text COLLATE "C" REFERENCES orgs ON DELETE CASCADE,
    kind        text NOT NULL CHECK (kind ~ '^[a-z_]{1,60}$'),
    -- Of jobs of one kind and key only one is open.
    key         text COLLATE "C" NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    payload     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(payload) = 'object'),
    status      text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempt     integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    attempts    integer NOT NULL CHECK (attempts BETWEEN 1 AND 100),
    not_before  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz,
    worker      text,
    progress    jsonb CHECK (jsonb_typeof(progress) = 'object'),
    error       jsonb CHECK (jsonb_typeof(error) = 'object'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL))
);
CREATE UNIQUE INDEX jobs_open ON jobs (kind, key) WHERE finished_at IS NULL;
CREATE INDEX jobs_queued ON jobs (not_before) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (lease_until) WHERE status = 'running';
CREATE INDEX jobs_key ON jobs (kind, key, created_at);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
