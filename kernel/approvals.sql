-- Approvals: listed, shown, decided.

-- name: list
SELECT id, org_id, run_id, session_id, step_id, call_id, path, kind, name, arguments, edited, revision, prompt, schema,
       max_bytes, role, approvers,
       (SELECT count(*) FROM approval_decisions d
        WHERE d.approval_id = a.id AND d.revision = a.revision AND d.decision = 'approve') AS approvals,
       status, on_expiry, expires_at, escalate_at, escalate_role, escalated_at, answer, error, comment, decided_by,
       decided_at, created_at
FROM approvals a
WHERE org_id = $1
  AND ($2::text IS NULL OR id < $2)
  AND ($3::text IS NULL OR status = $3)
  AND ($4::text IS NULL OR run_id = $4)
  AND ($5::text IS NULL OR role = $5 OR escalated_at IS NOT NULL AND escalate_role = $5)
ORDER BY id DESC
LIMIT $6;

-- name: get
SELECT id, org_id, run_id, session_id, step_id, call_id, path, kind, name, arguments, edited, revision, prompt, schema,
       max_bytes, role, approvers,
       (SELECT count(*) FROM approval_decisions d
        WHERE d.approval_id = a.id AND d.revision = a.revision AND d.decision = 'approve') AS approvals,
       status, on_expiry, expires_at, escalate_at, escalate_role, escalated_at, answer, error, comment, decided_by,
       decided_at, created_at
FROM approvals a WHERE org_id = $1 AND id = $2;

-- name: audit_trail
SELECT decision, revision, user_id, key_id, role, arguments, comment, at
FROM approval_decisions WHERE org_id = $1 AND approval_id = $2 ORDER BY place;

-- name: client_calls
SELECT id, status FROM approvals
WHERE org_id = $1 AND run_id = $2 AND call_id = $3 AND kind = 'client_tool' ORDER BY id DESC;

-- name: decide
SELECT * FROM decide_approval($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: resolve_due
SELECT * FROM resolve_due_approvals($1);
