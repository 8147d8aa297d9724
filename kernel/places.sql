-- name: places
-- Where these runs are in their sessions' logs. A run's log ends at its `done`, or with the session's floor if that is
-- gone; `end_seq` is NULL while the run is unfinished.
SELECT r.id, r.org_id, r.session_id, r.first_seq,
       coalesce((SELECT seq FROM events WHERE run_id = r.id AND type = 'done'),
                CASE WHEN r.finished_at IS NOT NULL THEN s.floor_seq END) AS end_seq
FROM runs r JOIN sessions s ON s.id = r.session_id
WHERE r.id = ANY ($1::text[]);
