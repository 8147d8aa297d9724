-- name: load
-- What is known of session $2 (org $1) before turn $3 (NULL: the first turn that has not ended): the newest summary, the
-- newest $4 messages of the conversation behind it, or the oldest ($5), notes and large results.
SELECT t.turn - 1 AS turn, w.version, w.notes, w.results, s.summary, m.dialogue
FROM (SELECT coalesce($3, (SELECT min(r.turn) FROM runs r WHERE r.org_id = $1 AND r.session_id = $2
                             AND r.finished_at IS NULL), s.turns + 1) AS turn
      FROM sessions s WHERE s.org_id = $1 AND s.id = $2) AS t
LEFT JOIN session_windows w ON w.org_id = $1 AND w.session_id = $2
LEFT JOIN LATERAL (
    SELECT n.upto_turn, n.upto_position,
           json_build_object('upto', json_build_array(n.upto_turn, n.upto_position), 'text', n.text, 'asked', n.asked,
                             'messages', n.messages, 'tokens_before', n.tokens_before, 'tokens_after', n.tokens_after,
                             'told_in', n.told_in) AS summary
    FROM session_summaries n
    WHERE n.org_id = $1 AND n.session_id = $2 AND n.upto_turn < t.turn
    ORDER BY n.upto_turn DESC, n.upto_position DESC LIMIT 1) AS s ON true
LEFT JOIN LATERAL (
    SELECT json_agg(json_build_array(d.turn, d.position, d.role, d.content) ORDER BY d.turn, d.position) AS dialogue
    FROM ((SELECT turn, position, role, content FROM messages
           WHERE org_id = $1 AND session_id = $2 AND turn < t.turn AND path = ''
             AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
             AND (turn, position) > (coalesce(s.upto_turn, 0), coalesce(s.upto_position, -1)) AND NOT $5::boolean
           ORDER BY turn DESC, position DESC LIMIT $4)
          UNION ALL
          (SELECT turn, position, role, content FROM messages
           WHERE org_id = $1 AND session_id = $2 AND turn < t.turn AND path = ''
             AND role IN ('user', 'assistant', 'system') AND tool_calls IS NULL
             AND (turn, position) > (coalesce(s.upto_turn, 0), coalesce(s.upto_position, -1)) AND $5::boolean
           ORDER BY turn, position LIMIT $4)) AS d) AS m ON true;

-- name: keep_summary
-- Adds a summary to session $2 (org $1) that goes on from ($3, $4) and ends at ($5, $6); nothing where another one did
-- so first. $14: whether a later run is to say so.
WITH fitting AS (
    INSERT INTO session_windows AS w (org_id, session_id, summary_turn, summary_position)
    SELECT $1, $2, $5::integer, $6::integer WHERE ($3::integer, $4::integer) < ($5::integer, $6::integer)
    ON CONFLICT (session_id) DO UPDATE
    SET version = w.version + 1, summary_turn = excluded.summary_turn, summary_position = excluded.summary_position,
        updated_at = now()
    WHERE w.org_id = $1 AND w.summary_turn = $3 AND w.summary_position = $4
    RETURNING w.session_id
)
INSERT INTO session_summaries (org_id, session_id, upto_turn, upto_position, text, asked, model, messages,
                               tokens_before, tokens_after, input_tokens, output_tokens, told_in)
SELECT $1, f.session_id, $5, $6, $7, $8::json, $9, $10, $11, $12, ($13::bigint[])[1], ($13::bigint[])[2],
       CASE WHEN $14 THEN 1 + (SELECT coalesce(max(r.turn), 0) FROM runs r
                               WHERE r.org_id = $1 AND r.session_id = $2 AND r.started_at IS NOT NULL) END
FROM fitting f
ON CONFLICT DO NOTHING
RETURNING 1;

-- name: forget_summaries
-- All but the newest $3 of a session.
DELETE FROM session_summaries s
USING (SELECT upto_turn, upto_position FROM session_summaries WHERE org_id = $1 AND session_id = $2
       ORDER BY upto_turn DESC, upto_position DESC OFFSET $3 LIMIT 1) AS last
WHERE s.org_id = $1 AND s.session_id = $2
  AND (s.upto_turn, s.upto_position) <= (last.upto_turn, last.upto_position);

-- name: keep_results
-- Adds large results $3 (a JSON array), of which a session keeps the newest $4.
INSERT INTO session_windows AS w (org_id, session_id, results) VALUES ($1, $2, $3::json)
ON CONFLICT (session_id) DO UPDATE
SET version = w.version + 1, updated_at = now(),
    results = (SELECT json_agg(k.one ORDER BY k.place)
               FROM (SELECT a.one, a.place
                     FROM json_array_elements((w.results::jsonb || $3::jsonb)::json) WITH ORDINALITY AS a (one, place)
                     ORDER BY a.place DESC LIMIT $4) AS k)
WHERE w.org_id = $1;

-- name: notes
SELECT notes FROM session_windows WHERE org_id = $1 AND session_id = $2;

-- name: notes_locked
-- The notes, locked until the transaction ends. The row is made if there is none.
INSERT INTO session_windows AS w (org_id, session_id) VALUES ($1, $2)
ON CONFLICT (session_id) DO UPDATE SET updated_at = now() WHERE w.org_id = $1
RETURNING w.notes;

-- name: keep_notes
UPDATE session_windows SET notes = $3::jsonb, version = version + 1, updated_at = now()
WHERE org_id = $1 AND session_id = $2;

-- name: keep_run_summary
-- Adds a summary of agent $3's steps in run $2 up to position $4, if the run is still owned under epoch $7.
INSERT INTO run_summaries (org_id, run_id, path, upto_position, text, model)
SELECT r.org_id, r.id, $3, $4, $5, $6 FROM runs r
WHERE r.org_id = $1 AND r.id = $2 AND r.epoch = $7 AND r.status = 'running'
ON CONFLICT DO NOTHING;

-- name: run_summary
SELECT upto_position, text FROM run_summaries
WHERE org_id = $1 AND run_id = $2 AND path = $3 AND upto_position < $4
ORDER BY upto_position DESC LIMIT 1;

-- name: result
-- The result of a tool in session $2 (org $1).
SELECT content FROM messages WHERE org_id = $1 AND session_id = $2 AND id = $3 AND role = 'tool';
