-- Databases that an org lets its agents ask. How to reach one is a secret of the org; here stands only its name.

CREATE TABLE sources (
    id              text COLLATE "C" PRIMARY KEY CHECK (id ~ '^src_[0-9a-f]{32}$'),
    org_id          text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    name            text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z][a-z0-9_]{0,63}$'),
    description     text NOT NULL DEFAULT '' CHECK (length(description) <= 2000),
    secret          text NOT NULL CHECK (length(secret) BETWEEN 1 AND 100),
    agent_ids       text[],  -- those that may ask; NULL: all of the org
    max_rows        integer NOT NULL CHECK (max_rows BETWEEN 1 AND 10000),
    timeout_seconds double precision NOT NULL CHECK (timeout_seconds > 0 AND timeout_seconds <= 120),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, name)
);
