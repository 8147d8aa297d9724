"""The `reset` event: what a follower gets first where the events it asks for are no longer kept.

Its id is the last seq that is gone; the events after it follow as usual. Its snapshot says what the missing part came
to: of a run the run itself, of a session what was said in it. The same bytes each time, as long as that is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from api.run_views import show_run
from kernel.events import render_time
from kernel.postgres import Pool
from kernel.replay import AtFloor, end_seq, read_at_floor
from kernel.runs import FinalAnswer, answer_of, get_run


@dataclass(frozen=True, slots=True)
class Reset:
    """A `reset` frame up to seq `floor`. `over`: nothing follows, for the run's `done` is among what is gone."""

    frame: bytes
    floor: int
    over: bool


async def read_reset(db: Pool, org_id: str, session_id: str, run_id: str | None) -> Reset:
    """What a stream of the session, or of one run of it, begins with where it begins below the floor.

    Raises NotFound.
    """
    past = await read_at_floor(db, org_id, session_id)
    if run_id is None:
        active = past.active_run
        snapshot: dict[str, Any] = {
            "messages": past.messages,
            "truncated": past.truncated,
            "active_run": None if active is None else {"id": active[0], "status": active[1]},
        }
        return Reset(_frame(past, session_id, None, snapshot), past.floor, False)
    run = await get_run(db, org_id, run_id)
    answer = await answer_of(db, org_id, run_id) if run.finished_at is not None else FinalAnswer()
    end = await end_seq(db, org_id, run_id)
    snapshot = {**show_run(run), "answer": answer.text, "output": answer.output}
    frame = _frame(past, session_id, run_id, snapshot)
    return Reset(frame, past.floor, end is not None and end <= past.floor)


def _frame(past: AtFloor, session_id: str, run_id: str | None, snapshot: dict[str, Any]) -> bytes:
    data = {
        "seq": past.floor,
        "session_id": session_id,
        "run_id": run_id,
        "at": render_time(past.at),
        "reason": "retention",
        "snapshot": snapshot,
    }
    return b"id: %d\nevent: reset\ndata: %b\n\n" % (past.floor, orjson.dumps(data, option=orjson.OPT_UTC_Z))
