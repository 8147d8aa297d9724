-- Skills that an org has made for its agents, and their versions.
--
-- A run keeps to the versions that were the newest when it was made, so versions are never changed, and a skill that is
-- deleted stays for the runs that were there before. Its name never changes: agents name skills.

CREATE TABLE skills (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^skl_[0-9a-f]{32}$'),
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    name       text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z][a-z0-9_]{0,63}$'),
    version    integer NOT NULL DEFAULT 1 CHECK (version >= 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    UNIQUE (org_id, id)
);
CREATE UNIQUE INDEX skills_name ON skills (org_id, name) WHERE deleted_at IS NULL;
CREATE INDEX skills_ever ON skills (org_id, name);

CREATE TABLE skill_versions (
    skill_id   text COLLATE "C" NOT NULL,
    version    integer NOT NULL CHECK (version >= 1),
    org_id     text COLLATE "C" NOT NULL,
    config     json NOT NULL,
    files      json NOT NULL,  -- texts by their paths; apart from the rest, which every run with the skill reads
    -- the clock, not the transaction's beginning: versions that wait for one another must not share a time
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (skill_id, version),
    FOREIGN KEY (org_id, skill_id) REFERENCES skills (org_id, id) ON DELETE CASCADE
);
