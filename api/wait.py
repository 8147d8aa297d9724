"""Waiting for a run to end, on the same feed that streams use: no polling, whoever runs it."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Receive

from kernel.hub import Feed, Hub, Viewer
from kernel.postgres import Pool
from kernel.runs import Run, get_run


async def wait_for_end(hub: Hub, db: Pool, run: Run, seconds: float, receive: Receive) -> Run:
    """The run as it is once it has ended, after so many seconds, or when the caller or this process goes."""
    deadline = time.monotonic() + seconds
    async with hub.follow(run.org_id, run.session_id) as (feed, viewer):
        leaving = asyncio.create_task(_watch(receive, viewer), name="waiter-leaving")
        try:
            while True:
                viewer.stale = False
                cursor = feed.tail
                run = await get_run(db, run.org_id, run.id)
                if run.finished_at is not None or viewer.closed or hub.closing or time.monotonic() >= deadline:
                    return run
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await _may_have_ended(feed, viewer, run.id, cursor)
                except TimeoutError:
                    continue  # one last look
        finally:
            leaving.cancel()


async def _may_have_ended(feed: Feed, viewer: Viewer, run_id: str, cursor: int) -> None:
    """Returns when the run's end has come by after `cursor`, or may have."""
    while not (viewer.stale or viewer.closed):
        frames = feed.after(cursor)
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
    viewer.closed = True
    viewer.wake()
