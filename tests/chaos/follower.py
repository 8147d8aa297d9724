"""One follower of one run: it holds on through everything, comes back with the last id it has, and keeps all bytes.

What it never accepts: an id that does not rise, and an end of the stream for good before `done`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable

import aiohttp

from tests.chaos.course import Course

_HEAD = re.compile(rb"id: (\d+)\nevent: (\w+)\n")
_WORKER = re.compile(rb'"worker":"[^"]*:(\d+)"')
_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError)


class Follower:
    """`url` gives the address of some API process, another one each time. `frames` are the bytes of its events."""

    def __init__(self, course: Course, http: aiohttp.ClientSession, url: Callable[[], str], rng: random.Random) -> None:
        self.frames = b""
        self.connects = 0
        self._course = course
        self._http = http
        self._url = url
        self._rng = rng
        self._last = 0
        self._reading: asyncio.Task[bool] | None = None

    async def follow(self) -> None:
        """Returns when it has `done`."""
        while True:
            self._reading = asyncio.create_task(self._connect())
            with contextlib.suppress(*_TROUBLE):
                try:
                    if await self._reading:
                        return
                except asyncio.CancelledError:
                    if not self._reading.cancelled():  # the follower itself is to stop
                        raise
                finally:
                    self._reading.cancel()
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))

    def disconnect(self) -> None:
        """Breaks off; it comes back by itself."""
        if self._reading is not None:
            self._reading.cancel()

    async def _connect(self) -> bool:
        headers = {"Last-Event-ID": str(self._last)} if self._last else {}
        path = f"/v1/runs/{self._course.run_id}/events"
        async with self._http.get(self._url() + path, headers=headers) as answer:
            if answer.status == 503:
                return False
            if answer.status != 200:
                self._course.finding(f"its stream after {self._last} was answered with {answer.status}")
                return True
            self.connects += 1
            rest = b""
            async for chunk in answer.content.iter_any():
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    if self._take(block + b"\n\n"):
                        return True
        return False

    def _take(self, frame: bytes) -> bool:
        head = _HEAD.match(frame)
        if head is None:  # a heartbeat, or `retry:`
            return False
        seq, kind = int(head[1]), head[2]
        if seq <= self._last:
            self._course.finding(f"a follower at {self._last} was sent {seq} ({kind.decode()})")
        self._last = seq
        self.frames += frame
        if kind in (b"run_started", b"run_resumed") and (worker := _WORKER.search(frame)):
            self._course.owned_by(int(worker[1]), frame)
        return kind == b"done"
