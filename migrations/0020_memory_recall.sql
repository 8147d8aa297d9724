-- Recall: an exact search of any shelf, and the search of the graph.

-- The table of a space, as in 0017, and an index by shelf: a shelf that is small enough is read from end to end, also
-- one that was large and has vectors in the graph.
CREATE OR REPLACE FUNCTION memory_space_create(p_id integer, p_dimensions integer) RETURNS void LANGUAGE plpgsql AS $$
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
    EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_shelf ON memory_space_%1$s (shelf)', p_id);
    EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_fresh ON memory_space_%1$s (shelf) WHERE NOT in_graph', p_id);
    EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_graph ON memory_space_%1$s
                    USING hnsw (embedding halfvec_ip_ops) WITH (m = 16, ef_construction = 64) WHERE in_graph', p_id);
END
$$;
DO $$
DECLARE
    v_space integer;
BEGIN
    FOR v_space IN SELECT id FROM memory_spaces WHERE state <> 'retired' LOOP
        EXECUTE format('CREATE INDEX IF NOT EXISTS memory_space_%1$s_shelf ON memory_space_%1$s (shelf)', v_space);
    END LOOP;
END
$$;

-- Both arms of recall are functions because of their settings, which end with them: connections are pooled. No plan may
-- read a table from end to end or sort a large shelf, whatever the planner makes of one shelf that holds most rows.
-- p_within: leave out what does not count now, or is not of p_kinds and p_documents (null: any), before the best are
-- chosen; it costs a look at each memory.

-- The p_limit best memories by words, of those with any of the entries p_any, or both entries of a pair.
CREATE FUNCTION memory_by_words(p_any bigint[], p_one bigint[], p_other bigint[], p_rarities sparsevec, p_within boolean,
                                p_kinds text[], p_documents text[], p_limit integer)
RETURNS SETOF bigint LANGUAGE plpgsql STABLE ROWS 100
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    SELECT f.memory
    FROM ((SELECT w.memory, w.impacts FROM memory_words w WHERE w.keys && p_any LIMIT 6000)
          UNION ALL
          SELECT b.memory, b.impacts
          FROM unnest(p_one, p_other) AS pair (one, other)
          CROSS JOIN LATERAL (
              SELECT w.memory, w.impacts FROM memory_words w WHERE w.keys @> ARRAY[pair.one, pair.other] LIMIT 2000
          ) AS b) AS f
    WHERE NOT p_within OR EXISTS (
        SELECT FROM memories m
        WHERE m.no = f.memory AND m.ended_at IS NULL
              AND (m.valid_from IS NULL OR m.valid_from <= now()) AND (m.valid_until IS NULL OR m.valid_until > now())
              AND (p_kinds IS NULL OR m.kind = ANY (p_kinds))
              AND (p_documents IS NULL OR m.document_id = ANY (p_documents)))
    ORDER BY f.impacts <#> p_rarities LIMIT p_limit;
END
$$;

-- The p_limit nearest memories of each part of a space: p_small, shelves that are compared from end to end; p_large,
-- what the graph has of these, and what it has not yet. Of documents all passages are compared.
--
-- p_effort: how widely the graph is searched (ef_search). The scan goes on until it has found so many on the shelves, or has seen max_scan_tuples. Planned anew
-- each time, for these shelves.
CREATE FUNCTION memory_near(p_space integer, p_vector halfvec, p_small bigint[], p_large bigint[], p_within boolean,
                            p_kinds text[], p_documents text[], p_limit integer, p_effort integer)
RETURNS SETOF bigint LANGUAGE plpgsql STABLE ROWS 100
SET hnsw.ef_search = 100
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 20000
SET hnsw.scan_mem_multiplier = 4
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_parts text[] := '{}';
    v_part text;
    v_kinds text := CASE WHEN p_kinds IS NULL THEN '' ELSE ' AND s.kind = ANY ($5)' END;
    v_within text := CASE WHEN p_within THEN ' AND EXISTS (
        SELECT FROM memories m
        WHERE m.no = s.memory AND m.ended_at IS NULL
              AND (m.valid_from IS NULL OR m.valid_from <= now()) AND (m.valid_until IS NULL OR m.valid_until > now()))'
        ELSE '' END;
BEGIN
    IF p_documents IS NOT NULL THEN
        v_parts := ARRAY['s.memory = ANY (ARRAY(SELECT no FROM memories WHERE document_id = ANY ($6)
                                                AND shelf = ANY ($3 || $4)))'];
    ELSE
        IF p_small <> '{}' THEN
            v_parts := v_parts || 's.shelf = ANY ($3)'::text;
        END IF;
        IF p_large <> '{}' THEN
            v_parts := v_parts || 's.shelf = ANY ($4) AND NOT s.in_graph'::text || 's.shelf = ANY ($4) AND s.in_graph'::text;
        END IF;
    END IF;
    PERFORM set_config('hnsw.ef_search', p_effort::text, true);  -- until the function ends, as it has a SET of that
    FOREACH v_part IN ARRAY v_parts LOOP
        RETURN QUERY EXECUTE format('SELECT s.memory FROM memory_space_%s s WHERE %s%s%s ORDER BY s.embedding <#> $1 LIMIT $2',
                                    p_space, v_part, v_kinds, v_within)
        USING p_vector, p_limit, p_small, p_large, p_kinds, p_documents;
    END LOOP;
END
$$;
