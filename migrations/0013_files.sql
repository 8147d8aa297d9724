-- Files of sessions: here is what is known of them, their bytes lie in a blob store under random keys.
--
-- A blob is never changed and belongs to one file at most. It is written under a key that stands in loose_blobs, and is
-- a file's from the moment when one transaction takes the key out of there and puts it into the file's row. A blob that a
-- file gives up goes back into loose_blobs, whatever removes the file. So every blob is named in one of the two tables,
-- and what is loose and due can be deleted without a look at the store: nothing takes it any more.

CREATE TABLE workspaces (
    session_id text COLLATE "C" PRIMARY KEY,
    org_id     text COLLATE "C" NOT NULL,
    files      integer NOT NULL DEFAULT 0 CHECK (files >= 0),
    bytes      bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    UNIQUE (org_id, session_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE
);

CREATE TABLE files (
    session_id   text COLLATE "C" NOT NULL,
    path         text COLLATE "C" NOT NULL CHECK (octet_length(path) <= 512 AND path !~ '(^|/)\.{0,2}(/|$)'),
    org_id       text COLLATE "C" NOT NULL,
    size         bigint NOT NULL CHECK (size >= 0),
    content_type text NOT NULL CHECK (length(content_type) BETWEEN 3 AND 200),
    sha256       bytea NOT NULL CHECK (octet_length(sha256) = 32),
    blob         text COLLATE "C" NOT NULL UNIQUE,
    user_id      text,
    run_id       text COLLATE "C",
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, path),
    FOREIGN KEY (org_id, session_id) REFERENCES workspaces (org_id, session_id) ON DELETE CASCADE
);

CREATE TABLE loose_blobs (
    blob   text COLLATE "C" PRIMARY KEY,
    due_at timestamptz NOT NULL
);
CREATE INDEX loose_blobs_due ON loose_blobs (due_at);

-- Which calls of tools have changed files: one that is made again after a crash must not do it again, because others may
-- have changed the same file since.
CREATE TABLE file_calls (
    session_id text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    org_id     text COLLATE "C" NOT NULL,
    run_id     text COLLATE "C" NOT NULL,
    PRIMARY KEY (session_id, key),
    FOREIGN KEY (org_id, session_id) REFERENCES workspaces (org_id, session_id) ON DELETE CASCADE
);

CREATE FUNCTION loosen_blob() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO loose_blobs (blob, due_at) VALUES (OLD.blob, now()) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER files_deleted AFTER DELETE ON files FOR EACH ROW EXECUTE FUNCTION loosen_blob();
CREATE TRIGGER files_replaced AFTER UPDATE OF blob ON files FOR EACH ROW
    WHEN (OLD.blob <> NEW.blob) EXECUTE FUNCTION loosen_blob();

-- All changes of a workspace come one after the other, under the lock of its row. Each returns how it went:
--   done       changed; replaced is the blob that was given up by it
--   repeated   this call has been made before
--   no_session, no_file
--   stale      the file is not the version that the caller expected, or is there where none was expected
--   in_the_way other is a file where the path needs a folder, or a file below the path, which so is a folder
--   no_room    too many bytes; no_place: too many files
--   too_late   the blob has become due meanwhile
-- A file that is moved is not in its own way: `a` may become `a/b`.
CREATE FUNCTION file_in_the_way(p_session text, p_path text, p_moved text DEFAULT '') RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT path FROM files
    WHERE session_id = p_session AND path <> p_moved
      AND ((path > p_path || '/' AND path < p_path || '0')
           OR path IN (SELECT array_to_string(parts[1:n], '/')
                       FROM string_to_array(p_path, '/') AS parts, generate_series(1, cardinality(parts) - 1) AS n))
    ORDER BY path LIMIT 1
$$;

-- p_expected: NULL takes any state, '' none, else the blob that the file must have.
CREATE FUNCTION put_file(p_org text, p_session text, p_path text, p_size bigint, p_content_type text, p_sha256 bytea,
    p_blob text, p_user text, p_run text, p_key text, p_expected text, p_most_files integer, p_most_bytes bigint,
    OUT outcome text, OUT replaced text, OUT other text)
LANGUAGE plpgsql AS $$
DECLARE
    v_room workspaces;
    v_old files;
BEGIN
    SELECT * INTO v_room FROM workspaces WHERE org_id = p_org AND session_id = p_session FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        INSERT INTO file_calls (session_id, key, org_id, run_id) VALUES (p_session, p_key, p_org, p_run)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            outcome := 'repeated';
            RETURN;
        END IF;
    END IF;
    SELECT * INTO v_old FROM files WHERE session_id = p_session AND path = p_path;
    replaced := v_old.blob;
    outcome := CASE
        WHEN p_expected IS NOT NULL AND coalesce(v_old.blob, '') <> p_expected THEN 'stale'
        WHEN v_room.bytes - coalesce(v_old.size, 0) + p_size > p_most_bytes THEN 'no_room'
        WHEN replaced IS NULL AND v_room.files >= p_most_files THEN 'no_place'
        ELSE 'done' END;
    IF outcome = 'done' AND replaced IS NULL THEN
        other := file_in_the_way(p_session, p_path);
        IF other IS NOT NULL THEN
            outcome := 'in_the_way';
        END IF;
    END IF;
    IF outcome = 'done' THEN
        DELETE FROM loose_blobs WHERE blob = p_blob AND due_at > now();
        IF NOT FOUND THEN
            outcome := 'too_late';
        END IF;
    END IF;
    IF outcome <> 'done' THEN
        DELETE FROM file_calls WHERE session_id = p_session AND key = p_key;
        RETURN;
    END IF;
    INSERT INTO files (session_id, path, org_id, size, content_type, sha256, blob, user_id, run_id)
    VALUES (p_session, p_path, p_org, p_size, p_content_type, p_sha256, p_blob, p_user, p_run)
    ON CONFLICT (session_id, path) DO UPDATE
    SET size = excluded.size, content_type = excluded.content_type, sha256 = excluded.sha256, blob = excluded.blob,
        user_id = excluded.user_id, run_id = excluded.run_id, updated_at = now();
    UPDATE workspaces
    SET files = files + CASE WHEN replaced IS NULL THEN 1 ELSE 0 END, bytes = bytes - coalesce(v_old.size, 0) + p_size
    WHERE session_id = p_session;
END $$;

CREATE FUNCTION drop_file(p_org text, p_session text, p_path text, p_run text, p_key text, p_expected text,
    OUT outcome text, OUT replaced text, OUT other text)
LANGUAGE plpgsql AS $$
DECLARE
    v_old files;
BEGIN
    PERFORM 1 FROM workspaces WHERE org_id = p_org AND session_id = p_session FOR UPDATE;
    IF FOUND AND EXISTS (SELECT FROM file_calls WHERE session_id = p_session AND key = p_key) THEN
        outcome := 'repeated';
        RETURN;
    END IF;
    SELECT * INTO v_old FROM files WHERE org_id = p_org AND session_id = p_session AND path = p_path;
    IF NOT FOUND THEN
        outcome := 'no_file';
    ELSIF v_old.blob <> p_expected THEN
        outcome := 'stale';
    ELSE
        outcome := 'done';
        replaced := v_old.blob;
        DELETE FROM files WHERE session_id = p_session AND path = p_path;
        UPDATE workspaces SET files = files - 1, bytes = bytes - v_old.size WHERE session_id = p_session;
        IF p_key IS NOT NULL THEN
            INSERT INTO file_calls (session_id, key, org_id, run_id) VALUES (p_session, p_key, p_org, p_run);
        END IF;
    END IF;
END $$;

-- A file that is at p_to already is replaced only if p_replace.
CREATE FUNCTION move_file(p_org text, p_session text, p_from text, p_to text, p_replace boolean, p_user text,
    p_run text, p_key text, OUT outcome text, OUT replaced text, OUT other text)
LANGUAGE plpgsql AS $$
DECLARE
    v_moved files;
    v_old files;
BEGIN
    PERFORM 1 FROM workspaces WHERE org_id = p_org AND session_id = p_session FOR UPDATE;
    IF FOUND AND EXISTS (SELECT FROM file_calls WHERE session_id = p_session AND key = p_key) THEN
        outcome := 'repeated';
        RETURN;
    END IF;
    SELECT * INTO v_moved FROM files WHERE org_id = p_org AND session_id = p_session AND path = p_from;
    IF NOT FOUND THEN
        outcome := 'no_file';
        RETURN;
    END IF;
    outcome := 'done';
    IF p_from = p_to THEN
        RETURN;
    END IF;
    SELECT * INTO v_old FROM files WHERE session_id = p_session AND path = p_to;
    IF FOUND AND NOT p_replace THEN
        outcome := 'stale';
        RETURN;
    END IF;
    other := file_in_the_way(p_session, p_to, p_from);
    IF other IS NOT NULL THEN
        outcome := 'in_the_way';
        RETURN;
    END IF;
    replaced := v_old.blob;
    DELETE FROM files WHERE session_id = p_session AND path = p_to;
    UPDATE files SET path = p_to, user_id = p_user, run_id = p_run, updated_at = now()
    WHERE session_id = p_session AND path = p_from;
    IF replaced IS NOT NULL THEN
        UPDATE workspaces SET files = files - 1, bytes = bytes - v_old.size WHERE session_id = p_session;
    END IF;
    IF p_key IS NOT NULL THEN
        INSERT INTO file_calls (session_id, key, org_id, run_id) VALUES (p_session, p_key, p_org, p_run);
    END IF;
END $$;
