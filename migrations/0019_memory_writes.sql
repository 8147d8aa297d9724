-- Writing memories: the functions that keep words, vectors and counts true to the memories.
--
-- Whoever writes or removes words or vectors holds the lock of their shelves until the end of the transaction, taken in
-- the order of the shelves' ids before anything is read. The row of memory_totals is locked after that, and by it the
-- org's memory_terms. So nobody waits in a circle, and nothing is counted from a state that was about to change.

-- Each page of a list is read from an index, whoever asks. Ids rise with time.
DROP INDEX memories_shelf;
CREATE INDEX memories_listed ON memories (shelf, id);
CREATE INDEX memories_of_org ON memories (org_id, id);

-- Counters change with each write: room for new versions in the page of the old one.
ALTER TABLE memory_shelves SET (fillfactor = 60);
ALTER TABLE memory_totals SET (fillfactor = 20);
ALTER TABLE memory_terms SET (fillfactor = 60);

-- All memories up to this number have words, and a vector in this space, unless they are over.
ALTER TABLE memory_spaces
    ADD COLUMN filled_to bigint NOT NULL DEFAULT 0 CHECK (filled_to >= 0),
    ADD COLUMN retired_at timestamptz;

-- Walked through in search of those whose session is gone.
CREATE INDEX memory_shelves_of_sessions ON memory_shelves (id) WHERE scope = 'session';

-- Shelves of an org, in the order asked for, locked; they are made where they are not there. Everybody asks in one order,
-- and before anything else in a transaction: where a shelf is removed in this very moment, the transaction begins again.
CREATE FUNCTION memory_shelve(p_org text, p_scopes text[], p_owners text[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_shelves bigint[] := '{}';
    v_shelf bigint;
    v_locked integer;
BEGIN
    FOR i IN 1..cardinality(p_scopes) LOOP
        LOOP
            SELECT id INTO v_shelf FROM memory_shelves
            WHERE org_id = p_org AND scope = p_scopes[i] AND owner = p_owners[i];
            EXIT WHEN FOUND;
            INSERT INTO memory_shelves (org_id, scope, owner) VALUES (p_org, p_scopes[i], p_owners[i])
            ON CONFLICT (org_id, scope, owner) DO NOTHING;
        END LOOP;
        v_shelves := v_shelves || v_shelf;
    END LOOP;
    PERFORM FROM memory_shelves WHERE id = ANY (v_shelves) ORDER BY id FOR NO KEY UPDATE;
    GET DIAGNOSTICS v_locked = ROW_COUNT;
    IF v_locked < cardinality(p_scopes) THEN
        RAISE 'a shelf was removed in this moment' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN v_shelves;
END
$$;

-- Writes the words and vectors of memories that have none. Their shelves are locked by the caller.
--
-- p_terms: numbers as int[] literals; p_impacts: sparsevec literals; p_found and p_found_in: each term, and in how many
-- of these memories it is; p_vectors: halfvec literals for space p_space, or null where that is null.
CREATE FUNCTION memory_index(p_org text, p_memories bigint[], p_shelves bigint[], p_kinds text[], p_terms text[],
                             p_impacts text[], p_lengths integer[], p_found integer[], p_found_in integer[],
                             p_space integer, p_vectors text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_lowest bigint := (SELECT min(m) FROM unnest(p_memories) AS m);
BEGIN
    IF v_lowest IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO memory_words (memory, shelf, keys, impacts, length)
    SELECT g.memory, g.shelf, ARRAY(SELECT g.shelf << 29 | t FROM unnest(g.terms::integer[]) AS t),
           g.impacts::sparsevec, g.length
    FROM unnest(p_memories, p_shelves, p_terms, p_impacts, p_lengths) AS g (memory, shelf, terms, impacts, length);
    IF p_space IS NOT NULL THEN
        EXECUTE format('INSERT INTO memory_space_%s (memory, shelf, kind, embedding)
                        SELECT g.memory, g.shelf, g.kind, g.vector::halfvec
                        FROM unnest($1, $2, $3, $4) AS g (memory, shelf, kind, vector)', p_space)
        USING p_memories, p_shelves, p_kinds, p_vectors;
    END IF;
    UPDATE memory_shelves s SET memories = s.memories + g.n
    FROM (SELECT shelf, count(*) AS n FROM unnest(p_shelves) AS shelf GROUP BY shelf) AS g WHERE s.id = g.shelf;
    INSERT INTO memory_totals AS t (org_id, memories, length)
    SELECT p_org, count(*), sum(l) FROM unnest(p_lengths) AS l
    ON CONFLICT (org_id) DO UPDATE
    SET memories = t.memories + excluded.memories, length = t.length + excluded.length;
    INSERT INTO memory_terms AS t (org_id, term, memories)
    SELECT p_org, g.term, g.n FROM unnest(p_found, p_found_in) AS g (term, n) ORDER BY g.term
    ON CONFLICT (org_id, term) DO UPDATE SET memories = t.memories + excluded.memories;
    -- In other spaces they have none: whoever fills those begins again before them.
    UPDATE memory_spaces SET filled_to = v_lowest - 1
    WHERE state <> 'retired' AND id IS DISTINCT FROM p_space AND filled_to >= v_lowest;
END
$$;

-- Removes the words and vectors of memories that have some. Their shelves are locked by the caller.
CREATE FUNCTION memory_unindex(p_org text, p_memories bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_space integer;
    v_shelves bigint[];
    v_length bigint;
    v_terms integer[];
    v_in integer[];
BEGIN
    FOR v_space IN SELECT id FROM memory_spaces WHERE state <> 'retired' LOOP
        EXECUTE format('DELETE FROM memory_space_%s WHERE memory = ANY ($1)', v_space) USING p_memories;
    END LOOP;
    WITH gone AS (
        DELETE FROM memory_words WHERE memory = ANY (p_memories) RETURNING shelf, keys, length
    ), had AS (
        SELECT (k & 536870911)::integer AS term, count(*)::integer AS n FROM gone, unnest(gone.keys) AS k GROUP BY 1
    )
    SELECT g.shelves, g.length, h.terms, h.n INTO v_shelves, v_length, v_terms, v_in
    FROM (SELECT array_agg(shelf) AS shelves, sum(length) AS length FROM gone) AS g,
         (SELECT array_agg(term ORDER BY term) AS terms, array_agg(n ORDER BY term) AS n FROM had) AS h;
    IF v_shelves IS NULL THEN
        RETURN;
    END IF;
    UPDATE memory_shelves s SET memories = s.memories - g.n
    FROM (SELECT shelf, count(*) AS n FROM unnest(v_shelves) AS shelf GROUP BY shelf) AS g WHERE s.id = g.shelf;
    UPDATE memory_totals SET memories = memories - cardinality(v_shelves), length = length - v_length
    WHERE org_id = p_org;
    UPDATE memory_terms t SET memories = t.memories - g.n
    FROM unnest(v_terms, v_in) AS g (term, n) WHERE t.org_id = p_org AND t.term = g.term;
    DELETE FROM memory_terms WHERE org_id = p_org AND term = ANY (v_terms) AND memories = 0;
END
$$;

-- Keeps memories; one whose text its scope has already updates that. In the order given: their ids, and whether each
-- was there before.
--
-- p_rows: an array of objects with the columns of memories; their `shelf` is a place in p_scopes and p_owners, from 1.
-- No two have one shelf and text. The rest: see memory_index.
CREATE FUNCTION memory_write(p_org text, p_scopes text[], p_owners text[], p_rows json, p_terms text[],
                             p_impacts text[], p_lengths integer[], p_found integer[], p_found_in integer[],
                             p_space integer, p_vectors text[])
RETURNS TABLE (id text, created_at timestamptz, updated_at timestamptz) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_shelves bigint[] := memory_shelve(p_org, p_scopes, p_owners);
    v_given text[];
    v_ids text[];
    v_nos bigint[];
    v_at bigint[];
    v_kinds text[];
    v_created timestamptz[];
    v_updated timestamptz[];
    v_hashes bytea[];
    v_expected bytea[];
BEGIN
    SELECT array_agg(r.id), array_agg(r.content_hash) INTO v_given, v_expected
    FROM json_to_recordset(p_rows) AS r (id text, content_hash bytea);
    WITH written AS (
        INSERT INTO memories AS m (
            id, org_id, user_id, agent_id, session_id, run_id, kind, text, source, content_hash, shelf, provenance,
            confidence, valid_from, valid_until, entities, thread, place, context, document_id, page, metadata)
        SELECT r.id, p_org, r.user_id, r.agent_id, r.session_id, r.run_id, r.kind, r.text, r.source, r.content_hash,
               v_shelves[r.shelf], r.provenance, r.confidence, r.valid_from, r.valid_until, r.entities, r.thread,
               r.place, r.context, r.document_id, r.page, r.metadata
        FROM json_populate_recordset(NULL::memories, p_rows) AS r
        ON CONFLICT (org_id, user_id, content_hash) DO UPDATE
        SET agent_id = excluded.agent_id, session_id = excluded.session_id, run_id = excluded.run_id,
            kind = excluded.kind, source = excluded.source, provenance = excluded.provenance,
            confidence = excluded.confidence, valid_from = excluded.valid_from, valid_until = excluded.valid_until,
            entities = excluded.entities, thread = excluded.thread, place = excluded.place, context = excluded.context,
            document_id = excluded.document_id, page = excluded.page, metadata = excluded.metadata, updated_at = now()
        RETURNING m.id, m.no, m.shelf, m.kind, m.created_at, m.updated_at, m.content_hash
    )
    SELECT array_agg(w.id), array_agg(w.no), array_agg(w.shelf), array_agg(w.kind), array_agg(w.created_at),
           array_agg(w.updated_at), array_agg(w.content_hash)
    INTO v_ids, v_nos, v_at, v_kinds, v_created, v_updated, v_hashes
    FROM written AS w;
    IF v_hashes IS DISTINCT FROM v_expected THEN
        RAISE 'memories were written in another order than given';
    END IF;
    IF v_ids <> v_given THEN
        PERFORM memory_unindex(p_org, ARRAY(
            SELECT g.no FROM unnest(v_nos, v_ids, v_given) AS g (no, id, given) WHERE g.id <> g.given));
    END IF;
    PERFORM memory_index(p_org, v_nos, v_at, v_kinds, p_terms, p_impacts, p_lengths, p_found, p_found_in, p_space,
                         p_vectors);
    RETURN QUERY SELECT * FROM unnest(v_ids, v_created, v_updated);
END
$$;

-- Changes columns of a memory that is not over; whether there is one.
--
-- p_patch: an object of the columns that change. Where the text does: p_terms and so on, see memory_index.
CREATE FUNCTION memory_change(p_org text, p_memory bigint, p_patch json, p_terms text, p_impacts text,
                              p_length integer, p_found integer[], p_space integer, p_vector text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_shelf bigint;
    v_kind text;
    v_space integer;
BEGIN
    SELECT s.id INTO v_shelf FROM memory_shelves s JOIN memories m ON m.shelf = s.id
    WHERE m.no = p_memory AND m.org_id = p_org FOR NO KEY UPDATE OF s;
    UPDATE memories m
    SET (kind, text, source, content_hash, confidence, valid_from, valid_until, entities, metadata, embedding,
         embedding_model, search, updated_at)
        = (SELECT r.kind, r.text, r.source, r.content_hash, r.confidence, r.valid_from, r.valid_until, r.entities,
                  r.metadata, r.embedding, r.embedding_model, r.search, now()
           FROM json_populate_record(m, p_patch) AS r)
    WHERE m.no = p_memory AND m.org_id = p_org AND m.ended_at IS NULL
    RETURNING m.kind INTO v_kind;
    IF v_kind IS NULL THEN
        RETURN false;
    END IF;
    IF p_terms IS NOT NULL THEN
        PERFORM memory_unindex(p_org, ARRAY[p_memory]);
        PERFORM memory_index(p_org, ARRAY[p_memory], ARRAY[v_shelf], ARRAY[v_kind], ARRAY[p_terms],
                             ARRAY[p_impacts], ARRAY[p_length], p_found, array_fill(1, ARRAY[cardinality(p_found)]),
                             p_space, ARRAY[p_vector]);
    ELSIF p_patch -> 'kind' IS NOT NULL THEN
        FOR v_space IN SELECT id FROM memory_spaces WHERE state <> 'retired' LOOP
            EXECUTE format('UPDATE memory_space_%s SET kind = $1 WHERE memory = $2', v_space) USING v_kind, p_memory;
        END LOOP;
    END IF;
    RETURN true;
END
$$;

-- Ends a memory, whose shelf is locked by the caller; whether it was not over before. Its text may be kept anew.
CREATE FUNCTION memory_end(p_org text, p_memory bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE memories
    SET ended_at = now(), updated_at = now(), embedding = NULL, embedding_model = NULL, search = NULL,
        content_hash = sha256(convert_to(id, 'UTF8') || '\x00'::bytea || convert_to(text, 'UTF8'))
    WHERE no = p_memory AND org_id = p_org AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM memory_unindex(p_org, ARRAY[p_memory]);
    RETURN true;
END
$$;

-- Removes memories for good; how many there were.
CREATE FUNCTION memory_forget(p_org text, p_memories bigint[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_gone bigint;
BEGIN
    PERFORM FROM memory_shelves
    WHERE id = ANY (ARRAY(SELECT DISTINCT shelf FROM memories WHERE no = ANY (p_memories) AND org_id = p_org))
    ORDER BY id FOR NO KEY UPDATE;
    PERFORM memory_unindex(p_org, ARRAY(SELECT no FROM memories WHERE no = ANY (p_memories) AND org_id = p_org));
    DELETE FROM memories WHERE no = ANY (p_memories) AND org_id = p_org;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    RETURN v_gone;
END
$$;

-- Removes a shelf on which nothing stands; whether it did.
CREATE FUNCTION memory_unshelve(p_shelf bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM memory_shelves WHERE id = p_shelf FOR UPDATE;
    DELETE FROM memory_shelves WHERE id = p_shelf AND NOT EXISTS (SELECT FROM memories WHERE shelf = p_shelf);
    RETURN FOUND;
END
$$;

-- Memories as they are shown.
CREATE VIEW memory_items AS
SELECT m.no, m.shelf, m.org_id, m.id, s.scope, nullif(s.owner, '') AS owner, m.kind, m.text, m.source, m.provenance,
       m.confidence::text::float8 AS confidence,  -- 0.7 and not 0.699999988
       m.valid_from, m.valid_until, m.ended_at, m.superseded_by, m.entities, m.thread, m.place, m.context,
       m.document_id, m.page, m.metadata::text AS metadata, m.agent_id, m.session_id, m.run_id, m.created_at,
       m.updated_at
FROM memories m JOIN memory_shelves s ON s.id = m.shelf;

-- The space of a model and a length of vectors, made where there is none: serving if there is nothing that would lack a
-- vector in it, else to be filled.
CREATE FUNCTION memory_space_open(p_model text, p_dimensions integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_space integer;
BEGIN
    PERFORM pg_advisory_xact_lock(1280659789);  -- any constant; "LSPM" in ASCII
    SELECT id INTO v_space FROM memory_spaces
    WHERE model = p_model AND dimensions = p_dimensions AND state <> 'retired';
    IF NOT FOUND THEN
        PERFORM set_config('lock_timeout', '3s', true);  -- the table's foreign key locks out all who write memories
        INSERT INTO memory_spaces (model, dimensions, state, served_at)
        SELECT p_model, p_dimensions, CASE WHEN empty THEN 'serving' ELSE 'filling' END, CASE WHEN empty THEN now() END
        FROM (SELECT NOT EXISTS (SELECT FROM memories)
                     AND NOT EXISTS (SELECT FROM memory_spaces WHERE state = 'serving') AS empty) AS e
        RETURNING id INTO v_space;
        PERFORM memory_space_create(v_space, p_dimensions);
    END IF;
    RETURN v_space;
END
$$;

-- The space is full: it serves, and all others are retired. Whether it does.
CREATE FUNCTION memory_space_serve(p_space integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1280659789);
    IF NOT EXISTS (SELECT FROM memory_spaces WHERE id = p_space AND state <> 'retired') THEN
        RETURN false;
    END IF;
    UPDATE memory_spaces SET state = 'retired', retired_at = now() WHERE state <> 'retired' AND id <> p_space;
    UPDATE memory_spaces SET state = 'serving', served_at = now() WHERE id = p_space AND state = 'filling';
    RETURN true;
END
$$;
