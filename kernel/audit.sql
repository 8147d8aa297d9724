-- The audit log.

-- name: write
-- $1: entries as a JSON array. Those of an org that is gone by now are left out.
INSERT INTO audit_log (org_id, at, run_id, session_id, agent_id, actor, action, subject, outcome, details)
SELECT entry.org_id, entry.at, entry.run_id, entry.session_id, entry.agent_id, entry.actor, entry.action,
       entry.subject, entry.outcome, entry.details
FROM jsonb_to_recordset($1::jsonb) AS entry (
    org_id text, at timestamptz, run_id text, session_id text, agent_id text, actor text, action text, subject text,
    outcome text, details jsonb)
JOIN orgs ON orgs.id = entry.org_id
ORDER BY entry.at;

-- name: of_run
SELECT at, run_id, session_id, agent_id, actor, action, subject, outcome, details
FROM audit_log WHERE org_id = $1 AND run_id = $2 ORDER BY at, id;
