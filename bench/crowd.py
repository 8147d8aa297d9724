"""Thousands of viewers in one process, as cheap as they can be: they share the machine with what they follow.

`python -m bench.crowd` waits for commands. A viewer is a socket and the last seq it has; nothing is kept of the events
themselves.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from bench.commands import serve
from bench.stats import percentile

_ID = re.compile(rb"(?:^|\n)id: (\d+)\n")
_SENT = re.compile(rb'"sent":([0-9.]+)')
_LAST_CHUNK = b"0\r\n\r\n"
_LOOK_EVERY = 0.02
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Ending:
    """When a stream ended (monotonic), and whether with its last chunk or broken off."""

    at: float
    clean: bool


class Viewer:
    """One follower, over all its connections. `last` is the last seq it has."""

    __slots__ = ("_authorization", "_connection", "_path", "last")

    def __init__(self, path: str, authorization: str) -> None:
        self._path = path
        self._authorization = authorization
        self._connection: Connection | None = None
        self.last = 0

    @property
    def ending(self) -> Ending | None:
        """How its stream ended; None while it is open."""
        return self._connection.ending if self._connection is not None else None

    async def open(self, crowd: Crowd) -> None:
        """Asks for what follows `last`; returns when the first of the stream is there. Raises OSError."""
        lines = [f"GET {self._path} HTTP/1.1", "host: bench", "accept: text/event-stream"]
        if self._authorization:
            lines.append(f"authorization: {self._authorization}")
        if self.last:
            lines.append(f"last-event-id: {self.last}")
        connection = self._connection = Connection(self, crowd, "\r\n".join([*lines, "\r\n"]).encode())
        await asyncio.get_running_loop().create_connection(lambda: connection, crowd.host, crowd.port)
        await connection.until_open()

    def abort(self) -> None:
        """Drops the connection, as a network does."""
        if self._connection is not None:
            self._connection.abort()


class Connection(asyncio.Protocol):
    """One connection of a viewer."""

    __slots__ = ("_crowd", "_opened", "_request", "_rest", "_status", "_transport", "_viewer", "ending")

    def __init__(self, viewer: Viewer, crowd: Crowd, request: bytes) -> None:
        self._viewer = viewer
        self._crowd = crowd
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._status = 0
        self.ending: Ending | None = None

    async def until_open(self) -> None:
        if self._opened is not None:
            await self._opened

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._status:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            self._status = int(head[9:12])
            if self._status != 200:
                self._open(OSError(f"answered {self._status}: {data!r}"))
                return
        if data and self._opened is not None:
            self._open(None)
        if data.endswith(_LAST_CHUNK):
            self.ending = Ending(now, clean=True)
        elif not data.endswith(b"\r\n"):
            cut = data.rfind(b"\n\n") + 1
            data, self._rest = data[:cut], data[cut:]
        seqs = _ID.findall(data)
        if seqs:
            self._crowd.took(self._viewer, seqs, data, now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.ending is None:
            self.ending = Ending(time.monotonic(), clean=False)
        if self._opened is not None:
            self._open(ConnectionError(f"cut off: {exc}"))

    def _open(self, error: OSError | None) -> None:
        opened, self._opened = self._opened, None
        if opened is None or opened.done():
            return
        if error is None:
            opened.set_result(None)
        else:
            opened.set_exception(error)


class Crowd:
    """All viewers, and what they have seen since they were last asked."""

    def __init__(self) -> None:
        self.host = ""
        self.port = 0
        self._viewers: list[Viewer] = []
        self._events = 0
        self._holes = 0
        self._delays: list[float] = []

    def took(self, viewer: Viewer, seqs: list[bytes], data: bytes, now: float) -> None:
        self._events += len(seqs)
        for seq in map(int, seqs):
            if seq != viewer.last + 1:
                self._holes += 1
            viewer.last = seq
        if b'"sent":' in data:
            self._delays += [now - float(sent) for sent in _SENT.findall(data)]

    @property
    def _alive(self) -> int:
        return sum(viewer.ending is None for viewer in self._viewers)

    async def open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Opens streams: `viewers` are pairs of a path and an Authorization header."""
        self.host, self.port = command["host"], command["port"]
        new = [Viewer(path, authorization) for path, authorization in command["viewers"]]
        self._viewers += new
        answer = await _all(new, lambda viewer: viewer.open(self), command["at_most"])
        gc.collect()
        gc.freeze()
        return answer

    async def storm(self, command: dict[str, Any]) -> dict[str, Any]:
        """All viewers lose their connection and come back with the last id they have."""

        async def again(viewer: Viewer) -> None:
            viewer.abort()
            await viewer.open(self)

        return await _all(self._viewers, again, command["at_most"])

    async def seen(self, command: dict[str, Any]) -> dict[str, Any]:
        """What came since the last call; waits until it is `events` of them, if that is given."""
        await _until(lambda: self._events >= command.get("events", 0))
        delays = sorted(self._delays) or [0.0]
        answer = {
            "events": self._events,
            "holes": self._holes,
            "alive": self._alive,
            "p50_ms": percentile(delays, 0.5) * 1e3,
            "p95_ms": percentile(delays, 0.95) * 1e3,
            "p99_ms": percentile(delays, 0.99) * 1e3,
        }
        self._events, self._holes, self._delays = 0, 0, []
        return answer

    async def end(self, command: dict[str, Any]) -> dict[str, Any]:
        """Waits until all streams have ended: how many in order, and when the last of them did (monotonic)."""
        await _until(lambda: not self._alive)
        endings = [viewer.ending for viewer in self._viewers if viewer.ending is not None]
        return {
            "ended": len(endings),
            "clean": sum(ending.clean for ending in endings),
            "last_at": max((ending.at for ending in endings), default=0.0),
        }


async def _until(condition: Callable[[], bool]) -> None:
    """Returns once it holds, or after some patience."""
    deadline = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  # an event for each of millions of bytes
        await asyncio.sleep(_LOOK_EVERY)


async def _all(viewers: Iterable[Viewer], work: Callable[[Viewer], Awaitable[None]], at_most: int) -> dict[str, Any]:
    """Does it for each, so many at a time: how long all of it and each took, and what went wrong."""
    left = deque(viewers)
    times: list[float] = []
    failures: list[str] = []

    async def some() -> None:
        while left:
            viewer = left.popleft()
            began = time.monotonic()
            try:
                await work(viewer)
            except OSError as error:
                failures.append(str(error))
            times.append(time.monotonic() - began)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_most, len(left))):
            group.create_task(some())
    ordered = sorted(times) or [0.0]
    return {
        "seconds": time.monotonic() - began,
        "p95_ms": percentile(ordered, 0.95) * 1e3,
        "worst_ms": ordered[-1] * 1e3,
        "failed": len(failures),
        "failures": failures[:3],
    }


if __name__ == "__main__":
    crowd = Crowd()
    serve(open=crowd.open, storm=crowd.storm, seen=crowd.seen, end=crowd.end)
