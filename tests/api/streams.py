"""Reading event streams as a client does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream."""

    id: int
    event: str
    data: dict[str, Any]


class Stream:
    """An open stream. `frames` takes the events one by one; comments and `retry:` are left out."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.frames = self._frames()

    async def take(self, count: int) -> list[Frame]:
        """The next `count` events."""
        return [await anext(self.frames) for _ in range(count)]

    async def rest(self) -> list[Frame]:
        """All events up to the end of the stream."""
        return [frame async for frame in self.frames]

    async def _frames(self) -> AsyncIterator[Frame]:
        # Lines end with LF alone: a text's own line separators, such as U+2028, are no end of line.
        waiting = b""
        async for chunk in self.answer.aiter_bytes():
            *frames, waiting = (waiting + chunk).split(b"\n\n")
            for frame in frames:
                fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if not line.startswith(b":"))
                if b"data" in fields:
                    data = orjson.loads(fields[b"data"])
                    yield Frame(int(fields[b"id"]), fields[b"event"].decode(), data)


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **more: Any
) -> AsyncIterator[Stream]:
    """Opens a stream; it must be one."""
    accept = {"Accept": "text/event-stream", **(headers or {})}
    async with client.stream(method, path, headers=accept, timeout=15.0, **more) as answer:
        if answer.status_code != 200:
            await answer.aread()
        assert answer.status_code == 200, (answer.status_code, answer.text)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield Stream(answer)
