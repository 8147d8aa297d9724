"""Workers as operators see them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "workers.sql")


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has not signed off. `silent_seconds` ago its heartbeat was last heard."""

    id: str
    host: str
    pid: int
    slots: int
    running: int
    started_at: datetime
    seen_at: datetime
    silent_seconds: float


async def list_workers(db: Pool | Connection) -> list[Worker]:
    """All of them, the longest at work first."""
    return [Worker(**row) for row in await db.fetch(SQL.list)]
