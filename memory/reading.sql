-- Reading memories. Every statement names the org.

-- name: get
-- $2 id, $3 everyone, $4 user, $5 agent, $6 session
SELECT * FROM memory_items
WHERE id = $2 AND org_id = $1
      AND ($3 OR scope = 'org' OR owner = CASE scope WHEN 'user' THEN $4::text WHEN 'agent' THEN $5 ELSE $6 END)

-- name: list_visible
-- Ids below $2, at most $3, of kinds $4, scopes $5 and documents $6, $7 also those that are over; $8 user, $9 agent,
-- $10 session. One walk through an index for each of the few shelves that the asker sees.
SELECT i.* FROM memory_shelves s CROSS JOIN LATERAL (
    SELECT * FROM memory_items m
    WHERE m.shelf = s.id AND m.id < $2 AND ($7 OR m.ended_at IS NULL)
          AND ($4::text[] = '{}' OR m.kind = ANY ($4)) AND ($6::text[] = '{}' OR m.document_id = ANY ($6))
    ORDER BY m.id DESC LIMIT $3
) AS i
WHERE s.org_id = $1 AND ($5::text[] = '{}' OR s.scope = ANY ($5))
      AND (s.scope, s.owner) IN (('org', ''), ('user', $8::text), ('agent', $9::text), ('session', $10::text))
ORDER BY i.id DESC LIMIT $3

-- name: list_everyone
SELECT * FROM memory_items
WHERE org_id = $1 AND id < $2 AND ($7 OR ended_at IS NULL)
      AND ($4::text[] = '{}' OR kind = ANY ($4)) AND ($5::text[] = '{}' OR scope = ANY ($5))
      AND ($6::text[] = '{}' OR document_id = ANY ($6))
ORDER BY id DESC LIMIT $3

-- name: export
-- Those of user $2 above id $3, at most $4, the oldest first.
SELECT i.* FROM memory_shelves s CROSS JOIN LATERAL (
    SELECT * FROM memory_items m WHERE m.shelf = s.id AND m.id > $3 ORDER BY m.id LIMIT $4
) AS i
WHERE s.org_id = $1 AND s.scope = 'user' AND s.owner = $2
ORDER BY i.id
