-- Spaces of vectors: see migrations 0017 and 0019.

-- name: spaces
SELECT id, model, dimensions, state FROM memory_spaces WHERE state <> 'retired' ORDER BY id

-- name: open_space
SELECT memory_space_open($1, $2)
