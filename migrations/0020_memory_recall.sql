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

-- About p_limit memories of these shelves that are near p_vector, by the graph of a space.
--
-- The scan goes on through the graph until it has found so many on the shelves, or has seen max_scan_tuples. The
-- settings end with the function: connections are pooled. Sorting is off so that no plan reads a large shelf from end
-- to end; and the statement is planned anew each time, for these shelves.
CREATE FUNCTION memory_graph(p_space integer, p_vector halfvec, p_shelves bigint[], p_kinds text[], p_limit integer)
RETURNS SETOF bigint LANGUAGE plpgsql STABLE ROWS 100
SET hnsw.ef_search = 100
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 20000
SET hnsw.scan_mem_multiplier = 4
SET enable_sort = off
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT memory FROM memory_space_%s WHERE in_graph AND shelf = ANY ($1) %s ORDER BY embedding <#> $2 LIMIT $3',
        p_space, CASE WHEN p_kinds IS NULL THEN '' ELSE 'AND kind = ANY ($4)' END)
    USING p_shelves, p_vector, p_limit, p_kinds;
END
$$;
