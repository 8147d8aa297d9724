"""Server-sent events: a session's log, or one run's part of it, from any point on and then live.

A raw ASGI answer, because a viewer should cost little: a cursor on the hub's feed and one task that waits for the
client to leave. Whatever the feed can't give is read from the log, in pages, so that a slow or far behind viewer
holds no memory. A stream of one run ends after its `done`; a client that goes away changes nothing for the run. Where
the log is no longer kept as far back as a viewer wants it, it is told so by a `reset`.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from starlette.types import Receive, Scope, Send

from api.reset import read_reset
from kernel.errors import NotFound
from kernel.feed import Frames, Viewer
from kernel.hub import Hub
from kernel.postgres import Pool
from kernel.replay import read_page

_PAGE: Final = 200
_MOST_AT_ONCE: Final = 32 * 1024
_HEARTBEAT: Final = b":\n\n"


class EventStream:
    """The answer to one follower. `after` is the last seq it has; `opening` frames are sent at once and end there."""

    def __init__(
        self,
        hub: Hub,
        db: Pool,
        *,
        org_id: str,
        session_id: str,
        run_id: str | None,
        after: int,
        opening: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._hub = hub
        self._db = db
        self._org_id = org_id
        self._session_id = session_id
        self._run_id = run_id
        self._cursor = after
        self._opening = opening
        self._headers = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Jitter keeps the viewers of a process that went down from coming back all at once.
        retry = b"retry: %d\n\n" % random.randint(500, 2500)  # noqa: S311  # nothing secret
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in self._headers.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": retry + self._opening, "more_body": True})
        viewer = await self._hub.join(self._org_id, self._session_id)
        try:
            leaving = asyncio.create_task(_watch(receive, viewer), name="viewer-leaving")
            try:
                await self._follow(viewer, send)
            finally:
                leaving.cancel()
        finally:
            self._hub.leave(viewer)
        # Also after a disconnect: a server that shuts down says so to all, and the client may well be there still.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, viewer: Viewer, send: Send) -> None:
        feed = viewer.feed
        while not (viewer.closed or self._hub.closing):
            frames = feed.after(self._cursor)
            if frames is None:
                if await self._catch_up(viewer, send):
                    return
            elif frames:
                frames = _beginning(frames)
                if await self._send(frames, send):
                    return
            elif viewer.beat:
                viewer.beat = False
                await send({"type": "http.response.body", "body": _HEARTBEAT, "more_body": True})
            else:
                await viewer.wait()

    async def _catch_up(self, viewer: Viewer, send: Send) -> bool:
        """Sends what the log has after the cursor, as far as it is known to go. True if the stream ends there."""
        reach = viewer.feed.reach
        while self._cursor < reach and not viewer.closed:
            page = await read_page(
                self._db, self._org_id, self._session_id, after=self._cursor, limit=_PAGE, most_bytes=_MOST_AT_ONCE
            )
            if page.floor > self._cursor:
                if await self._reset(send):
                    return True
                continue
            if await self._send(page.frames, send):
                return True
            if not page.frames:  # the rest of it has been pruned
                self._cursor = reach
        return False

    async def _reset(self, send: Send) -> bool:
        """Says which events after the cursor are gone, and what they came to. True if the stream ends there."""
        try:
            reset = await read_reset(self._db, self._org_id, self._session_id, self._run_id)
        except NotFound:  # the session was deleted meanwhile
            return True
        await _send_pieces(reset.frame, send)
        self._cursor = reset.floor
        return reset.over

    async def _send(self, frames: list[Frames], send: Send) -> bool:
        """Sends what belongs to this stream, moves the cursor. True if the run's `done` was in it."""
        ours: list[bytes] = []
        ended = False
        for entry in frames:
            self._cursor = entry.last
            if self._run_id is None or entry.run_id == self._run_id:
                ours.append(entry.data)
                if self._run_id is not None and entry.final:
                    ended = True
                    break
        await _send_pieces(b"".join(ours), send)
        return ended


def _beginning(frames: list[Frames]) -> list[Frames]:
    """As many as are sent at once: a viewer that reads slowly must not keep all that was in the ring when it began."""
    size = 0
    for place, entry in enumerate(frames):
        size += len(entry.data)
        if size > _MOST_AT_ONCE and place:
            return frames[:place]
    return frames


async def _send_pieces(data: bytes, send: Send) -> None:
    """Sends in pieces: each waits until the client has taken most of what came before."""
    for start in range(0, len(data), _MOST_AT_ONCE):
        await send({"type": "http.response.body", "body": data[start : start + _MOST_AT_ONCE], "more_body": True})


async def _watch(receive: Receive, viewer: Viewer) -> None:
    """Wakes the viewer when its client has gone. Something must wait here: `send` never says so."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            viewer.close()
            return
