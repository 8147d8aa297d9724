-- Recall: three statements, each one round trip. Every one names the org.
--
-- Vectors and arrays travel as text, which needs no type lookups on a new connection. The sub-selects around vectors
-- matter: as InitPlans they are parsed once; a bare parameter would be parsed again for every row. Words in braces are
-- put in by `arms.py`: numbers of its own, and parts of this file.

-- name: prospects
-- What there is to search: the shelves that the asker sees, the spaces of vectors, and how rare the terms are.
-- $1 org, $2 scopes and $3 their owners, $4 terms
SELECT 'shelf' AS what, id, memories AS amount, scope AS name, NULL AS state
FROM memory_shelves JOIN unnest($2::text[], $3::text[]) AS seen (scope, owner) USING (scope, owner)
WHERE org_id = $1
UNION ALL
SELECT 'space', id, dimensions, model, state FROM memory_spaces WHERE state <> 'retired'
UNION ALL
SELECT 'total', 0, memories, NULL, NULL FROM memory_totals WHERE org_id = $1
UNION ALL
SELECT 'term', term, memories, NULL, NULL FROM memory_terms WHERE org_id = $1 AND term = ANY ($4::text[]::integer[])

-- name: prospects_of_all
-- The same for who may see all of an org. Of its shelves the largest, because each has an entry in the index for each
-- term. $1 org, $2 scopes, $3 how many shelves, $4 terms
(SELECT 'shelf' AS what, id, memories AS amount, scope AS name, NULL AS state
 FROM memory_shelves WHERE org_id = $1 AND scope = ANY ($2::text[]) AND memories > 0
 ORDER BY memories DESC, id LIMIT $3::integer)
UNION ALL
SELECT 'space', id, dimensions, model, state FROM memory_spaces WHERE state <> 'retired'
UNION ALL
SELECT 'total', 0, memories, NULL, NULL FROM memory_totals WHERE org_id = $1
UNION ALL
SELECT 'term', term, memories, NULL, NULL FROM memory_terms WHERE org_id = $1 AND term = ANY ($4::text[]::integer[])

-- name: weighed
-- Candidates with what ranks them. A candidate of one arm is weighed by the others too: what an arm did not list it did
-- not find worthless. OFFSET 0: they are looked up one by one; a plan made for any org might read the largest one whole.
WITH candidates AS MATERIALIZED ({candidates})
SELECT m.no, m.shelf, m.kind, m.created_at, m.confidence::text::float8 AS confidence, m.entities, m.thread, m.place,
       w.length, {words} AS words{further}
FROM (SELECT DISTINCT memory FROM candidates) AS c
CROSS JOIN LATERAL (SELECT * FROM memories WHERE no = c.memory OFFSET 0) AS m
LEFT JOIN memory_words w ON w.memory = c.memory{vectors}
WHERE m.org_id = {org} AND m.shelf = ANY ({shelves}){only}

-- name: counts
m.ended_at IS NULL AND (m.valid_from IS NULL OR m.valid_from <= now()) AND (m.valid_until IS NULL OR m.valid_until > now())

-- name: further
, m.id, m.text, m.source, m.provenance, m.valid_from, m.document_id, m.page, m.metadata, m.context, w.keys::text AS keys

-- name: by_words
SELECT memory_by_words({any_of}, {one}, {other}, {rarities}, {within}, {kinds}, {documents}, {depth}) AS memory

-- name: near
SELECT memory_near({space}, {vector}, {small}, {large}, {within}, {kinds}, {documents}, {depth}, {effort}) AS memory

-- name: neighbours
(SELECT n.no AS memory FROM unnest({at_shelves}, {at_threads}, {at_places}) AS at (shelf, thread, place)
 JOIN memories n ON n.shelf = at.shelf AND n.thread = at.thread AND n.place BETWEEN at.place - 1 AND at.place + 1
 LIMIT {most})
