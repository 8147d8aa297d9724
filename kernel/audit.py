"""The audit log: who let which agent do what, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import orjson

from kernel.events import encode_json
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "audit.sql")

Action = Literal["run", "model_call", "tool_call"]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that was done. `subject` is the agent's, the model's or the tool's name, `actor` the user for whom it
    was done, `at` when it began. `details` have counts, times and classes, and no content."""

    org_id: str
    at: datetime
    run_id: str
    session_id: str
    agent_id: str
    actor: str | None
    action: Action
    subject: str
    outcome: str
    details: Mapping[str, Any] = field(default_factory=dict)


async def write_audit(db: Pool | Connection, entries: Sequence[AuditEntry]) -> None:
    """Keeps entries; those of an org that is gone are dropped."""
    await db.execute(SQL.write, encode_json([{**asdict(entry), "at": entry.at.isoformat()} for entry in entries]))


async def audit_of_run(db: Pool | Connection, org_id: str, run_id: str) -> list[AuditEntry]:
    """What was done in a run, in order."""
    rows = await db.fetch(SQL.of_run, org_id, run_id)
    return [AuditEntry(org_id=org_id, **{**row, "details": orjson.loads(row["details"])}) for row in rows]
