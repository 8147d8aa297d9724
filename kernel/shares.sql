-- Shares: weights, caps, and what was charged.

-- name: charge
SELECT charge_lanes($1, $2, $3);

-- name: list
SELECT o.name, o.weight, o.max_running, coalesce(l.charged, 0) AS charged,
       (SELECT count(*) FROM runs r WHERE r.org_id = o.id AND r.status = 'running') AS running,
       (SELECT count(*) FROM runs r
        WHERE reverse(r.org_id) = reverse(o.id) AND r.head AND r.status = 'queued' AND r.pause_requested_at IS NULL)
           AS waiting
FROM orgs o LEFT JOIN lanes l ON l.org_id = o.id
WHERE $1::text IS NULL OR o.name = $1
ORDER BY o.name;

-- name: set
UPDATE orgs
SET weight = coalesce($2, weight), max_running = CASE WHEN $4 THEN NULL ELSE coalesce($3, max_running) END
WHERE name = $1
RETURNING id;
