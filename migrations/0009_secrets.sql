-- Secrets: values that tools send and nobody reads. Only sealed forms are stored, each with the id of its key.

-- An org's own, by name.
CREATE TABLE secrets (
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    name       text COLLATE "C" NOT NULL CHECK (name ~ '^[A-Za-z][A-Za-z0-9_.-]{0,99}$'),
    sealed     bytea NOT NULL CHECK (octet_length(sealed) BETWEEN 30 AND 16384),
    key_id     text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, name)
);
-- For whoever takes a key out of use.
CREATE INDEX secrets_key ON secrets (key_id);

-- A run's own: all of them in one sealed JSON object. They are there for as long as the run is unfinished.
CREATE TABLE run_secrets (
    org_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    sealed bytea NOT NULL CHECK (octet_length(sealed) BETWEEN 30 AND 1048576),
    key_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (org_id, run_id),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE
);

-- Marks the runs that have secrets: the end of all others costs nothing more.
ALTER TABLE runs ADD COLUMN has_secrets boolean NOT NULL DEFAULT false;

CREATE FUNCTION mark_run_with_secrets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE runs SET has_secrets = true WHERE id = NEW.run_id AND finished_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER run_secrets_mark AFTER INSERT ON run_secrets
    FOR EACH ROW EXECUTE FUNCTION mark_run_with_secrets();

CREATE FUNCTION forget_run_secrets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM run_secrets WHERE org_id = NEW.org_id AND run_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_forget_secrets AFTER UPDATE OF finished_at ON runs
    FOR EACH ROW WHEN (NEW.has_secrets AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION forget_run_secrets();

-- Keeps a secret of an org under a name, in place of the one that it had. No row: the org has p_most others already.
CREATE FUNCTION put_secret(p_org text, p_name text, p_sealed bytea, p_key text, p_most integer)
RETURNS TABLE (created boolean, created_at timestamptz, updated_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- One at a time in an org: two that come together must not both be the last that fits.
    PERFORM pg_advisory_xact_lock(hashtextextended('secrets ' || p_org, 0));
    IF (SELECT count(*) FROM secrets WHERE org_id = p_org AND name <> p_name) >= p_most THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO secrets AS s (org_id, name, sealed, key_id) VALUES (p_org, p_name, p_sealed, p_key)
    ON CONFLICT (org_id, name) DO UPDATE
        SET sealed = excluded.sealed, key_id = excluded.key_id, updated_at = clock_timestamp()
    RETURNING s.xmax = 0, s.created_at, s.updated_at;
END $$;
