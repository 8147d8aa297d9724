-- What agents remember.
--
-- A memory belongs to an org and, where user_id is set, to that user alone. Agent, session and run say where it
-- was learned; they reference nothing, because a memory outlives them.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE memories (
    id              text COLLATE "C" PRIMARY KEY CHECK (id ~ '^mem_[0-9a-f]{32}$'),
    org_id          text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    user_id         text COLLATE "C" CHECK (length(user_id) BETWEEN 1 AND 200),
    -- Of unit length, or zero. Each model has its own number of dimensions, hence none in the column's type; the
    -- name of the model ends with it, so that vectors of one model can always be compared. Half precision loses
    -- nothing that ranks, and halves what a search reads.
    embedding_model text NOT NULL,
    embedding       halfvec NOT NULL CHECK (l2_norm(embedding) < 1.01),
    -- Terms, each under the tag of the memory's owner: to be written anew if org_id or user_id ever changes.
    search          tsvector NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('fact', 'preference', 'summary', 'knowledge', 'procedure')),
    text            text NOT NULL CHECK (length(text) BETWEEN 1 AND 8000 AND text ~ '\S'),
    source          text CHECK (length(source) BETWEEN 1 AND 500),
    agent_id        text COLLATE "C",
    session_id      text COLLATE "C",
    run_id          text COLLATE "C",
    content_hash    bytea NOT NULL CHECK (octet_length(content_hash) = 32),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK (embedding_model LIKE '_%/' || vector_dims(embedding)),
    -- The same text in the same scope is one memory. This index also leads to what a user may see.
    UNIQUE NULLS NOT DISTINCT (org_id, user_id, content_hash)
) WITH (toast_tuple_target = 8160);  -- rows stay whole: with vectors aside recall takes 4 to 8 times as long
-- No pending list: every recall would read it from end to end.
CREATE INDEX memories_search ON memories USING gin (search) WITH (fastupdate = off);
