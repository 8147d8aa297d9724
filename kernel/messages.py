"""The messages of a session: what was said, by whom, in order.

Only the conversation itself is listed, tool results included; what sub-agents said among themselves is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kernel.postgres import Connection, Pool
from kernel.sessions import get_session
from kernel.sql import statements

SQL = statements(__package__, "messages.sql")


@dataclass(frozen=True, slots=True)
class Message:
    """A message. `content` and `tool_calls` are JSON texts. It stands at `position` of its run's `turn`."""

    id: str
    session_id: str
    run_id: str
    turn: int
    position: int
    role: str
    content: str
    tool_calls: str | None
    tool_call_id: str | None
    created_at: datetime


async def list_messages(
    db: Pool | Connection, org_id: str, session_id: str, *, after: tuple[int, int] = (0, -1), limit: int = 20
) -> list[Message]:
    """The messages of a session, oldest first, those behind (turn, position) `after`. Raises NotFound."""
    rows = await db.fetch(SQL.list, org_id, session_id, *after, limit)
    if not rows:
        await get_session(db, org_id, session_id)
    return [Message(**row) for row in rows]
