"""A relay in front of Postgres that can keep the server's answers back: what was asked is done, and nobody hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_SOCKET = ".s.PGSQL.5432"


class AnswersRelay:
    """Passes bytes between clients of `url` and the server of another URL."""

    def __init__(self, folder: Path, database_url: str) -> None:
        host = parse_qs(urlsplit(database_url).query)["host"][0]
        self.url = database_url.replace(host, str(folder))
        self.kept_back = b""
        self._path = folder / _SOCKET
        self._target = Path(host) / _SOCKET
        self._holding = False
        self._tasks: set[asyncio.Task[None]] = set()

    def hold_answers(self) -> None:
        """From now on questions pass and answers don't: they gather in `kept_back`."""
        self._holding = True

    async def drop_connections(self) -> None:
        """Ends all connections with what they were to answer; new ones are served as usual."""
        self._holding = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[AnswersRelay]:
        """At work for the time of the block."""
        server = await asyncio.start_unix_server(self._join, self._path)
        try:
            yield self
        finally:
            server.close()
            await self.drop_connections()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        for source, sink, answers in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(65_536):
                if answers and self._holding:
                    self.kept_back += data
                    continue
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()
