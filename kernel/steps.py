"""The steps of a run: its visits to THINK, ACT, DELEGATE and RESPOND, those of sub-agents included."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kernel.postgres import Connection, Pool
from kernel.runs import get_run
from kernel.sql import statements

SQL = statements(__package__, "steps.sql")


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step. `path` is empty for the agent itself; `epoch` tells which owner of the run took it."""

    run_id: str
    step_id: str
    path: str
    state: str
    epoch: int
    started_at: datetime
    finished_at: datetime


async def list_steps(
    db: Pool | Connection,
    org_id: str,
    run_id: str,
    *,
    after: tuple[datetime, str] | None = None,
    limit: int = 20,
) -> list[Step]:
    """The steps of a run by their start, those behind (started_at, step_id) `after`. Raises NotFound."""
    at, step_id = after or (None, None)
    rows = await db.fetch(SQL.list, org_id, run_id, at, step_id, limit)
    if not rows:
        await get_run(db, org_id, run_id)
    return [Step(**row) for row in rows]
