-- Writing memories. The work is done by the functions of migration 0019: see there for who locks what, and when.

-- name: write
SELECT id, created_at, updated_at FROM memory_write($1, $2, $3, $4::text::json, $5, $6, $7, $8, $9, $10, $11)

-- name: change
SELECT memory_change($1, (SELECT no FROM memories WHERE id = $2 AND org_id = $1), $3::text::json, $4, $5, $6, $7, $8, $9)

-- name: shelve
SELECT memory_shelve($1, $2, $3)

-- name: end
SELECT memory_end($1, (SELECT no FROM memories WHERE id = $2 AND org_id = $1))

-- name: name_successor
UPDATE memories SET superseded_by = $3 WHERE id = $2 AND org_id = $1

-- name: forget
SELECT memory_forget($1, ARRAY(SELECT no FROM memory_items
                               WHERE id = ANY ($2::text[]) AND org_id = $1
                                     AND ($3 OR scope = 'org' OR owner = CASE scope WHEN 'user' THEN $4::text
                                                                    WHEN 'agent' THEN $5 ELSE $6 END)))

-- name: forget_document
SELECT memory_forget($1, ARRAY(SELECT no FROM memories WHERE document_id = $2 AND org_id = $1 LIMIT $3))

-- name: erase
SELECT memory_forget($1, ARRAY(SELECT m.no FROM memories m JOIN memory_shelves s ON s.id = m.shelf
                               WHERE s.org_id = $1 AND s.scope = 'user' AND s.owner = $2 LIMIT $3))

-- name: unshelve
SELECT memory_unshelve(id) FROM memory_shelves WHERE org_id = $1 AND scope = 'user' AND owner = $2
