-- Background jobs are taken in turn: one of each org, then the next one of each. An org that adds ten thousand keeps nobody
-- else's waiting.

-- When a worker took it last. The org of the job that was taken last is where the turn stands.
ALTER TABLE jobs ADD COLUMN taken_at timestamptz;
CREATE INDEX jobs_taken ON jobs (taken_at) WHERE taken_at IS NOT NULL;
-- Leads from one org with jobs that wait to the next one, and to the first of an org's. Jobs of no org are one more org's.
CREATE INDEX jobs_turns ON jobs (coalesce(org_id, ''), not_before, id) WHERE status = 'queued';
