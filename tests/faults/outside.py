"""The outside world that tools reach: an HTTP server that remembers every request, for tests of what is done once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as it came in."""

    method: str
    key: str | None
    """Its Idempotency-Key."""


class Outside:
    """Answers every request with 200 and a few words, `pause` seconds after it has taken note of it."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.address = ""
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self._arrival = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def until_seen(self, path: str) -> None:
        """Waits for the first request to `path`."""
        while not self.seen.get(path):
            self._arrival.clear()
            await self._arrival.wait()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        self.seen[request.path].append(Seen(request.method, request.headers.get("Idempotency-Key")))
        self._arrival.set()
        if self.pause:
            await asyncio.sleep(self.pause)
        return web.Response(text=f"{request.method} {request.path}: done")


@asynccontextmanager
async def outside_world(pause: float = 0.0) -> AsyncIterator[Outside]:
    """The server for the time of the block, on a free port of loopback."""
    outside = Outside(pause)
    runner = web.ServerRunner(web.Server(outside._answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        host, port = runner.addresses[0][:2]
        outside.address = f"{host}:{port}"
        yield outside
    finally:
        await runner.cleanup()
