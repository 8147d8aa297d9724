-- Reading turns of conversations for memories.

-- name: is_due
-- Whether run $2 of org $1 has succeeded, and nobody has asked for its turn to be read.
SELECT EXISTS (SELECT FROM runs WHERE org_id = $1 AND id = $2 AND status = 'succeeded')
       AND NOT EXISTS (SELECT FROM jobs WHERE kind = $3 AND key = $2);

-- name: missed
-- Runs that have succeeded within the last $1 seconds, but not the last $2, whose agent extracts ($3 where it does not
-- say) and whose turn nobody has asked to be read; $5 at most, of the newest $4.
WITH recent AS MATERIALIZED (
    (SELECT id, org_id, session_id, turn, agent_id, agent_version, workflow, status FROM runs
     WHERE finished_at > now() - make_interval(secs => $1) AND finished_at < now() - make_interval(secs => $2)
           AND finished_at IS NOT NULL AND kept = 'whole'
     ORDER BY finished_at DESC LIMIT $4)
    UNION ALL
    (SELECT id, org_id, session_id, turn, agent_id, agent_version, workflow, status FROM runs
     WHERE finished_at > now() - make_interval(secs => $1) AND finished_at < now() - make_interval(secs => $2)
           AND finished_at IS NOT NULL AND kept = 'slim'
     ORDER BY finished_at DESC LIMIT $4)
), extracting AS MATERIALIZED (
    -- Each configuration that was used is read once, however many runs it had, and no other.
    SELECT a.agent_id, a.agent_version
    FROM (SELECT DISTINCT agent_id, agent_version FROM recent) AS a
    CROSS JOIN LATERAL (SELECT (v.config #>> '{memory,extract}')::boolean AS extract FROM agent_versions v
                        WHERE v.agent_id = a.agent_id AND v.version = a.agent_version LIMIT 1) AS c
    WHERE coalesce(c.extract, $3)
)
SELECT r.id, r.org_id
FROM recent r JOIN extracting e ON e.agent_id = r.agent_id AND e.agent_version = r.agent_version
WHERE r.status = 'succeeded' AND r.workflow <> 'echo'
      AND EXISTS (SELECT FROM messages m
                  WHERE m.session_id = r.session_id AND m.turn = r.turn AND m.path = '' AND m.role = 'user')
      AND NOT EXISTS (SELECT FROM jobs j WHERE j.kind = $6 AND j.key = r.id)
LIMIT $5;

-- name: turn
-- Run $2 of org $1, if it has succeeded. `behind`: an earlier turn of its session is still to be read. `of_others`: the
-- earlier turns that were other users'.
SELECT r.session_id, r.turn, r.agent_id, r.user_id, r.finished_at, v.config::text AS config,
       (r.request -> 'model')::text AS model, s.created_at AS session_began,
       EXISTS (SELECT FROM runs e JOIN jobs j ON j.kind = $3 AND j.key = e.id AND j.finished_at IS NULL
               WHERE e.session_id = r.session_id AND e.org_id = r.org_id
                     AND e.turn < r.turn AND e.turn >= r.turn - 100) AS behind,
       (SELECT array_agg(e.turn) FROM runs e
        WHERE e.session_id = r.session_id AND e.org_id = r.org_id AND e.turn < r.turn
              AND e.user_id IS DISTINCT FROM r.user_id) AS of_others
FROM runs r
JOIN sessions s ON s.org_id = r.org_id AND s.id = r.session_id
JOIN agent_versions v ON v.org_id = r.org_id AND v.agent_id = r.agent_id AND v.version = r.agent_version
WHERE r.org_id = $1 AND r.id = $2 AND r.status = 'succeeded';

-- name: said
-- The messages of turn $3 of session $2 (org $1), $4 of them: the users', then the newest; of long texts the first $5
-- characters.
SELECT * FROM (
    SELECT position, role, tool_calls::text, tool_call_id,
           CASE WHEN json_typeof(content) = 'string' THEN left(content #>> '{}', $5) END AS text,
           CASE WHEN json_typeof(content) <> 'string' THEN content::text END AS parts
    FROM messages WHERE org_id = $1 AND session_id = $2 AND turn = $3 AND path = ''
    ORDER BY (role = 'user') DESC, position DESC LIMIT $4) AS m
ORDER BY position;

-- name: overheard
-- What tools returned in the turns of session $2 (org $1) before turn $3: the newest $4, of each the first $5 characters.
SELECT CASE WHEN json_typeof(content) = 'string' THEN left(content #>> '{}', $5) ELSE left(content::text, $5) END AS text
FROM messages WHERE org_id = $1 AND session_id = $2 AND turn < $3 AND path = '' AND role = 'tool'
ORDER BY turn DESC, position DESC LIMIT $4;

-- name: heard
-- What tools returned in turn $3 of session $2 (org $1): the newest $4, of each the first $5 characters.
SELECT CASE WHEN json_typeof(content) = 'string' THEN left(content #>> '{}', $5) ELSE left(content::text, $5) END AS text
FROM messages WHERE org_id = $1 AND session_id = $2 AND turn = $3 AND path = '' AND role = 'tool'
ORDER BY position DESC LIMIT $4;

-- name: is_there
-- Whether run $2 of org $1 was not deleted.
SELECT EXISTS (SELECT FROM runs WHERE org_id = $1 AND id = $2);
