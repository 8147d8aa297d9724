"""Reading a session's log back, as the frames it was streamed with."""

from __future__ import annotations

from kernel.events import render_frame, render_time
from kernel.feed import Frames
from kernel.journal import SQL
from kernel.postgres import Pool


async def read_frames(
    db: Pool, org_id: str, session_id: str, *, after: int, limit: int = 200, most_bytes: int | None = None
) -> list[Frames]:
    """Up to `limit` events after seq `after`, one entry each; none that begins beyond `most_bytes` of their data."""
    rows = await db.fetch(SQL.read, org_id, session_id, after, limit, most_bytes)
    return [
        Frames(
            row["seq"],
            row["seq"],
            row["run_id"],
            row["type"] == "done",
            render_frame(row["seq"], row["type"], session_id, row["run_id"], render_time(row["at"]), row["data"]),
        )
        for row in rows
    ]


async def done_seq(db: Pool, run_id: str) -> int | None:
    """The seq of the run's `done` event, None while it has none."""
    seq = await db.fetchval(SQL.done_seq, run_id)
    return None if seq is None else int(seq)
