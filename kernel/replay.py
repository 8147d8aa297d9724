"""Reading a session's log back, as the frames it was streamed with, and what it came to where it is no longer kept.

Retention leaves holes: chunks go some time after their run has ended, and everything up to the session's floor in the
end. Ids rise all the same, and a reader below the floor is told where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from kernel.errors import NotFound
from kernel.events import RunStatus, render_frame, render_time
from kernel.feed import Frames
from kernel.journal import SQL
from kernel.postgres import Pool

_MOST_MESSAGES: Final = 100
_MOST_MESSAGE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a log. Of events up to `floor` none is kept; 0: the log is there from its beginning."""

    frames: list[Frames]
    floor: int


@dataclass(frozen=True, slots=True)
class AtFloor:
    """What a session's log came to up to its floor, which it has had since `at`.

    `messages` were said in the turns that began there, oldest first, as {"message_id", "run_id", "role", "content"};
    `truncated`: there are older ones. `active_run` is the session's unfinished run and its status now.
    """

    floor: int
    at: datetime
    messages: list[dict[str, Any]]
    truncated: bool
    active_run: tuple[str, RunStatus] | None


async def read_page(
    db: Pool, org_id: str, session_id: str, *, after: int, limit: int = 200, most_bytes: int | None = None
) -> Page:
    """Up to `limit` events after seq `after`, one entry each; none that begins beyond `most_bytes` of their data.

    A page without frames is the end of the log. A session that is not there has an empty one.
    """
    rows = await db.fetch(SQL.read, org_id, session_id, after, limit, most_bytes)
    frames = [
        Frames(
            row["seq"],
            row["seq"],
            row["run_id"],
            row["type"] == "done",
            render_frame(row["seq"], row["type"], session_id, row["run_id"], render_time(row["at"]), row["data"]),
        )
        for row in rows
        if row["seq"] is not None
    ]
    return Page(frames, rows[0]["floor_seq"] if rows else 0)


async def read_frames(db: Pool, org_id: str, session_id: str, *, after: int, limit: int = 200) -> list[Frames]:
    """Up to `limit` events after seq `after`, as far as they are kept, one entry each."""
    return (await read_page(db, org_id, session_id, after=after, limit=limit)).frames


async def read_at_floor(db: Pool, org_id: str, session_id: str) -> AtFloor:
    """What stands in for the events that are gone. The session's log must have a floor. Raises NotFound."""
    row = await db.fetchrow(SQL.at_floor, org_id, session_id, _MOST_MESSAGES, _MOST_MESSAGE_BYTES)
    if row is None:
        raise NotFound(f"There is no session {session_id}.", field="session_id")
    active = row["active_run_id"]
    return AtFloor(
        floor=row["floor_seq"],
        at=row["floor_at"],
        messages=orjson.loads(row["messages"]),
        truncated=row["truncated"],
        active_run=None if active is None else (active, row["active_run_status"]),
    )


async def end_seq(db: Pool, org_id: str, run_id: str) -> int | None:
    """The last seq of the run's log: that of its `done` event, or the session's floor where that is gone. None while
    the run is unfinished."""
    seq = await db.fetchval(SQL.end_seq, org_id, run_id)
    return None if seq is None else int(seq)
