-- Documents of the knowledge base: what is known of them is here, their bytes lie in the blob store, their passages are
-- memories of kind `knowledge` with the document's id.
--
-- An upload is a version. The newest one is taken in by a background job; until that is done, and also where it can't be
-- read, the version before goes on being searched and downloaded. So a document has at most two versions with bytes: the
-- one that is served and the one that is coming.

CREATE TABLE documents (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^doc_[0-9a-f]{32}$'),
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    -- Who can recall it, as for memories.
    scope      text NOT NULL CHECK (scope IN ('org', 'user', 'agent', 'session')),
    owner      text COLLATE "C" NOT NULL CHECK (length(owner) <= 200),
    name       text COLLATE "C" NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    -- Of the newest version.
    version    integer NOT NULL DEFAULT 1 CHECK (version >= 1),
    format     text NOT NULL CHECK (format IN ('text', 'markdown', 'html', 'csv', 'pdf', 'docx')),
    media_type text NOT NULL CHECK (length(media_type) BETWEEN 3 AND 200),
    size       bigint NOT NULL CHECK (size > 0),
    sha256     bytea NOT NULL CHECK (octet_length(sha256) = 32),
    user_id    text,
    metadata   jsonb CHECK (jsonb_typeof(metadata) = 'object' AND pg_column_size(metadata) <= 16384),
    -- deleting: nobody sees it any more, the job removes what is left of it.
    status     text NOT NULL DEFAULT 'queued'
               CHECK (status IN ('queued', 'parsing', 'embedding', 'ready', 'failed', 'deleting')),
    error      jsonb CHECK (jsonb_typeof(error) = 'object'),
    -- The version whose passages are complete, what its reader found, and how many passages it has.
    served     integer CHECK (served BETWEEN 1 AND version),
    facts      jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(facts) = 'object'),
    passages   integer NOT NULL DEFAULT 0 CHECK (passages >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- A session's documents go with it.
    session_id text COLLATE "C" GENERATED ALWAYS AS (CASE WHEN scope = 'session' THEN owner END) STORED,
    CHECK ((scope = 'org') = (owner = '')),
    CHECK ((status = 'failed') = (error IS NOT NULL)),
    CHECK (status <> 'ready' OR served = version),
    CHECK (served IS NOT NULL OR passages = 0),
    UNIQUE (org_id, id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX documents_name ON documents (org_id, scope, owner, name) WHERE status <> 'deleting';
CREATE INDEX documents_session ON documents (org_id, session_id) WHERE session_id IS NOT NULL;

CREATE TABLE document_versions (
    document_id text COLLATE "C" NOT NULL,
    version     integer NOT NULL CHECK (version >= 1),
    org_id      text COLLATE "C" NOT NULL,
    -- As with files: a blob is named here or in loose_blobs, and never changed.
    blob        text COLLATE "C" NOT NULL UNIQUE,
    format      text NOT NULL,
    media_type  text NOT NULL,
    charset     text CHECK (length(charset) <= 40),
    size        bigint NOT NULL CHECK (size > 0),
    sha256      bytea NOT NULL CHECK (octet_length(sha256) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (document_id, version),
    FOREIGN KEY (org_id, document_id) REFERENCES documents (org_id, id) ON DELETE CASCADE
);
CREATE INDEX document_versions_org ON document_versions (org_id) INCLUDE (size);
CREATE TRIGGER document_versions_deleted AFTER DELETE ON document_versions
    FOR EACH ROW EXECUTE FUNCTION loosen_blob();
