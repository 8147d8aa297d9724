-- Memory that is good for millions of rows.
--
-- A shelf is all memories of one scope: of an org, of one of its users, agents or sessions. Who asks sees a handful of
-- shelves, and everything that a search reads is keyed by shelf, so nobody pays for another's memories.
--
-- Three tables hold a memory: what it is (memories), its words (memory_words), its vector (memory_space_<id>, one table
-- for each space of vectors). A memory that is over has no words and no vector: it can be read, and is never recalled.

CREATE TABLE memory_shelves (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (id < 1::bigint << 33),
    org_id   text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    scope    text NOT NULL CHECK (scope IN ('org', 'user', 'agent', 'session')),
    -- The id of the user, agent or session; '' for the org.
    owner    text COLLATE "C" NOT NULL CHECK (length(owner) <= 200),
    -- Memories that can be recalled. A large shelf is searched through a graph, a small one from end to end.
    memories bigint NOT NULL DEFAULT 0 CHECK (memories >= 0),
    CHECK ((scope = 'org') = (owner = '')),
    UNIQUE (org_id, scope, owner)
);

-- What is written without a scope is written by the release before this one: it finds its shelf by the trigger below,
-- and its words and vector by the worker that looks for memories without.
ALTER TABLE memories
    ADD COLUMN no            bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN shelf         bigint REFERENCES memory_shelves ON DELETE CASCADE,
    ADD COLUMN provenance    text NOT NULL DEFAULT 'tool' CHECK (provenance IN ('person', 'tool', 'model')),
    ADD COLUMN confidence    real NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
    -- When what it says is, or was, true. Open ends are null.
    ADD COLUMN valid_from    timestamptz,
    ADD COLUMN valid_until   timestamptz,
    -- When it stopped to count, and what took its place, if anything did.
    ADD COLUMN ended_at      timestamptz,
    ADD COLUMN superseded_by text COLLATE "C" CHECK (superseded_by ~ '^mem_[0-9a-f]{32}$'),
    -- Names and numbers that it is about, in lower case.
    ADD COLUMN entities      text[] NOT NULL DEFAULT '{}' CHECK (cardinality(entities) <= 32),
    -- What it stands in, such as a conversation or a document, and where; neighbours have places next to each other.
    ADD COLUMN thread        text COLLATE "C" CHECK (length(thread) BETWEEN 1 AND 200),
    ADD COLUMN place         integer CHECK (place >= 0),
    -- Words that it is found by beside its own: who said it, when, below which headings.
    ADD COLUMN context       text CHECK (length(context) BETWEEN 1 AND 1000),
    -- Of a passage of a document.
    ADD COLUMN document_id   text COLLATE "C" CHECK (document_id ~ '^doc_[0-9a-f]{32}$'),
    ADD COLUMN page          integer CHECK (page >= 1),
    ADD COLUMN metadata      jsonb CHECK (jsonb_typeof(metadata) = 'object' AND pg_column_size(metadata) <= 16384),
    ALTER COLUMN embedding_model DROP NOT NULL,
    ALTER COLUMN embedding DROP NOT NULL,
    ALTER COLUMN search DROP NOT NULL,
    ADD CHECK (valid_from <= valid_until),
    ADD CHECK (superseded_by IS NULL OR ended_at IS NOT NULL),
    ADD CHECK ((thread IS NULL) = (place IS NULL)),
    ADD UNIQUE (no);

INSERT INTO memory_shelves (org_id, scope, owner)
SELECT DISTINCT org_id, CASE WHEN user_id IS NULL THEN 'org' ELSE 'user' END, coalesce(user_id, '') FROM memories;
UPDATE memories SET shelf = s.id FROM memory_shelves s
WHERE s.org_id = memories.org_id AND s.owner = coalesce(memories.user_id, '')
      AND s.scope = CASE WHEN memories.user_id IS NULL THEN 'org' ELSE 'user' END;

CREATE FUNCTION memories_shelved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory_shelves (org_id, scope, owner)
    VALUES (NEW.org_id, CASE WHEN NEW.user_id IS NULL THEN 'org' ELSE 'user' END, coalesce(NEW.user_id, ''))
    ON CONFLICT (org_id, scope, owner) DO NOTHING;
    SELECT id INTO STRICT NEW.shelf FROM memory_shelves
    WHERE org_id = NEW.org_id AND owner = coalesce(NEW.user_id, '')
          AND scope = CASE WHEN NEW.user_id IS NULL THEN 'org' ELSE 'user' END;
    RETURN NEW;
END
$$;
CREATE TRIGGER memories_shelved BEFORE INSERT ON memories
    FOR EACH ROW WHEN (NEW.shelf IS NULL) EXECUTE FUNCTION memories_shelved();

ALTER TABLE memories ALTER COLUMN shelf SET NOT NULL;
CREATE INDEX memories_shelf ON memories (shelf, created_at, no);
CREATE INDEX memories_thread ON memories (shelf, thread, place) WHERE thread IS NOT NULL;
CREATE INDEX memories_document ON memories (document_id) WHERE document_id IS NOT NULL;

-- The words of a memory that can be recalled.
CREATE TABLE memory_words (
    memory  bigint PRIMARY KEY REFERENCES memories (no) ON DELETE CASCADE,
    shelf   bigint NOT NULL,
    -- Its terms: shelf << 29 | term, where a term is a number of 29 bits. The index leads from (shelf, term) to memories.
    keys    bigint[] NOT NULL,
    -- What each term says of it: BM25 without the rarity, at index term + 1. Its inner product with the rarities of a
    -- question's terms is BM25.
    impacts sparsevec(536870912) NOT NULL,
    -- Terms with repetitions.
    length  integer NOT NULL CHECK (length >= 0)
);
-- No pending list: every search would read it from end to end.
CREATE INDEX memory_words_keys ON memory_words USING gin (keys) WITH (fastupdate = off);

-- How many memories there are, how long they are together, and in how many of them each term is: of an org, whatever
-- the shelf, so that the rarity of a word is not judged by a user's ten memories.
CREATE TABLE memory_totals (
    org_id   text COLLATE "C" PRIMARY KEY REFERENCES orgs ON DELETE CASCADE,
    memories bigint NOT NULL CHECK (memories >= 0),
    length   bigint NOT NULL CHECK (length >= 0)
);
CREATE TABLE memory_terms (
    org_id   text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    term     integer NOT NULL CHECK (term BETWEEN 0 AND 536870911),
    memories bigint NOT NULL CHECK (memories >= 0),
    PRIMARY KEY (org_id, term)
);

-- Spaces of vectors: what one model makes of texts, of one length. Vectors of two spaces are never compared.
-- filling: new memories have a vector here, older ones are given one in the background; serving: all have one;
-- retired: its table is gone. Of a deployment that changes its model one space serves while the next is filled.
CREATE TABLE memory_spaces (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model      text NOT NULL CHECK (length(model) BETWEEN 1 AND 300),
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4000),
    state      text NOT NULL CHECK (state IN ('filling', 'serving', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    served_at  timestamptz
);
CREATE UNIQUE INDEX memory_spaces_name ON memory_spaces (model, dimensions) WHERE state <> 'retired';
CREATE UNIQUE INDEX memory_spaces_serving ON memory_spaces ((true)) WHERE state = 'serving';

-- The table of a space, memory_space_<id>. A vector is of length 1, or 0.
--
-- in_graph: the HNSW index has it. New vectors are not in the graph, which makes writing cheap; a search reads those of
-- its shelves from end to end. Vectors of large shelves are moved into the graph in the background, those of small ones
-- never are: a small org is searched exactly, and finds nothing of a large one's in its way.
CREATE FUNCTION memory_space_create(p_id integer, p_dimensions integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($t$
        CREATE TABLE IF NOT EXISTS memory_space_%1$s (
            memory    bigint PRIMARY KEY REFERENCES memories (no) ON DELETE CASCADE,
            shelf     bigint NOT NULL,
            kind      text NOT NULL,
            in_graph  boolean NOT NULL DEFAULT false,
            embedding halfvec(%2$s) NOT NULL CHECK (l2_norm(embedding) < 1.01)
        ) WITH (toast_tuple_target = 8160)
    $t$, p_id, p_dimensions);
    EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_fresh ON memory_space_%1$s (shelf) WHERE NOT in_graph', p_id);
    EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_graph ON memory_space_%1$s
                    USING hnsw (embedding halfvec_ip_ops) WITH (m = 16, ef_construction = 64) WHERE in_graph', p_id);
END
$$;
