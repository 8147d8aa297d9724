"""A relay between the API and a server, which a test can cut: the server is away, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Relay:
    """Passes bytes from a unix socket of its own to another. `cut` ends all connections and takes no more."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        """Takes connections, from the start or again."""
        self._server = await asyncio.start_unix_server(self._join, self._path)

    async def cut(self) -> None:
        """As if the server had gone."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = self._server
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        if server is None or server is not self._server:  # cut in the meantime
            writer.close()
            far_writer.close()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pipe = asyncio.create_task(_pump(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


@asynccontextmanager
async def relayed(path: Path, target: Path) -> AsyncIterator[Relay]:
    """A relay at work for the time of the block."""
    relay = Relay(path, target)
    await relay.mend()
    try:
        yield relay
    finally:
        await relay.cut()
