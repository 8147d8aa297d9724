"""Waiting for a run to end, on the same feed that streams use: no polling, whoever runs it."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Receive

from kernel.feed import Viewer
from kernel.hub import Hub
from kernel.postgres import Pool
from kernel.runs import Run, get_run


async def wait_for_end(hub: Hub, db: Pool, run: Run, seconds: float, receive: Receive) -> Run:
    """The run as it is once it has ended, after so many seconds, or when the caller or this process goes."""
    deadline = time.monotonic() + seconds
    viewer = await hub.join(run.org_id, run.session_id)
    try:
        leaving = asyncio.create_task(_watch(receive, viewer), name="waiter-leaving")
        try:
            while True:
                cursor = viewer.feed.reach
                run = await get_run(db, run.org_id, run.id)
                if run.finished_at is not None or viewer.closed or hub.closing or time.monotonic() >= deadline:
                    return run
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await _may_have_ended(viewer, run.id, cursor)
                except TimeoutError:
                    continue  # one last look
        finally:
            leaving.cancel()
    finally:
        hub.leave(viewer)


async def _may_have_ended(viewer: Viewer, run_id: str, cursor: int) -> None:
    """Returns when the run's end has come by after `cursor`, or may have."""
    while not viewer.closed:
        frames = viewer.feed.after(cursor)
        if frames is None:
            return
        for entry in frames:
            cursor = entry.last
            if entry.final and entry.run_id == run_id:
                return
        await viewer.wait()


async def _watch(receive: Receive, viewer: Viewer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.close()
