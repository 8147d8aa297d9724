-- name: list
SELECT id, session_id, run_id, turn, position, role, content, tool_calls, tool_call_id, created_at
FROM messages
WHERE org_id = $1 AND session_id = $2 AND path = '' AND (turn, position) > ($3, $4)
ORDER BY turn, position
LIMIT $5;
