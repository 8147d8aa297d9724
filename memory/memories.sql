-- Memories. Every statement names the org.
--
-- Vectors, text searches and arrays travel as text, which needs no type lookups on a new connection. The sub-selects
-- around them matter: as InitPlans they are parsed once, and not at all where there is no row to compare with; a bare
-- parameter would be parsed again for every row.

-- name: upsert_memory
INSERT INTO memories (id, org_id, user_id, agent_id, session_id, run_id, kind, text, source, embedding,
                      embedding_model, search, content_hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::halfvec, $11, $12::text::tsvector, $13)
ON CONFLICT (org_id, user_id, content_hash) DO UPDATE
SET agent_id = excluded.agent_id, session_id = excluded.session_id, run_id = excluded.run_id,
    kind = excluded.kind, source = excluded.source, embedding = excluded.embedding,
    embedding_model = excluded.embedding_model, search = excluded.search, updated_at = now()
RETURNING id, CASE WHEN user_id IS NULL THEN 'org' ELSE 'user' END AS scope, user_id AS owner, kind, text, source, provenance,
          confidence, valid_from, valid_until, ended_at, superseded_by, entities, thread, place, context, document_id,
          page, NULL AS metadata, agent_id, session_id, run_id, created_at, updated_at

-- name: has_memories
SELECT EXISTS (SELECT FROM memories WHERE org_id = $1 AND (user_id IS NULL OR user_id = $2))

-- name: recall
-- $1 org, $2 user, $3 and $4 the terms asked of the org's and of the user's memories, $5 what makes their rank a
-- share of all terms, $6 vector, $7 its model, $8 floor and $9 weight of nearness, $10 least share of terms, $11 limit,
-- $12 weights of the terms' grades
WITH shared AS (
    SELECT id, text, kind, created_at,
           least(1, $5::float8 * ts_rank((SELECT $12::text::float4[]), search, CASE WHEN user_id IS NULL
               THEN (SELECT $3::text::tsquery) ELSE (SELECT $4::text::tsquery) END)) AS covered
    FROM memories
    WHERE search @@ (SELECT coalesce($3::text::tsquery || $4::text::tsquery, $3::text::tsquery))
          AND org_id = $1 AND (user_id IS NULL OR user_id = $2)
), near AS (
    SELECT id, text, kind, created_at,
           (-(embedding <#> (SELECT $6::text::halfvec)) - $8::float8) / (1 - $8::float8) AS nearness
    FROM memories
    WHERE org_id = $1 AND (user_id IS NULL OR user_id = $2) AND $6::text IS NOT NULL
          -- vectors of two models may differ in length, which is an error: CASE keeps them apart
          AND CASE WHEN embedding_model = $7 THEN -(embedding <#> (SELECT $6::text::halfvec)) END > $8::float8
)
SELECT id, coalesce(shared.text, near.text) AS text, coalesce(shared.kind, near.kind) AS kind,
       least(1, (coalesce(covered, 0) + $9::float8 * coalesce(nearness, 0)) / (1 + $9::float8)) AS score,
       coalesce(shared.created_at, near.created_at) AS created_at
FROM (SELECT * FROM shared WHERE covered >= $10::float8) AS shared FULL JOIN near USING (id)
ORDER BY score DESC, id DESC
LIMIT $11
