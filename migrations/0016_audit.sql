-- The audit log: who let which agent do what, and how it ended. Never what was said, asked or found.
--
-- Written by the middleware `audit`. It outlives runs and sessions, so it points at none of them.

CREATE TABLE audit_log (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id     text COLLATE "C" NOT NULL REFERENCES orgs ON DELETE CASCADE,
    at         timestamptz NOT NULL,
    run_id     text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    agent_id   text COLLATE "C" NOT NULL,
    actor      text,  -- the user for whom the run was made, where the caller named one
    action     text COLLATE "C" NOT NULL CHECK (action IN ('run', 'model_call', 'tool_call')),
    subject    text NOT NULL,  -- the agent, the model or the tool, by name
    outcome    text NOT NULL,
    details    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_of_org ON audit_log (org_id, at);
CREATE INDEX audit_log_of_run ON audit_log (org_id, run_id);
