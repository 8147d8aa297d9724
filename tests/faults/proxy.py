"""A proxy before a server, at which a test makes the network as bad as it likes.

It passes bytes between clients of an address of its own and the server at another, a unix socket or host and port.
Healthy it changes nothing. It can be told to

- `cut`: end all connections at once; new ones are served,
- `refuse`: take no new connections,
- `vanish`: both, as a server that is gone,
- `stall`: pass nothing while connections stay open, as a network that loses every packet,
- `delay`: pass everything later,
- `drop_reply`: pass a request, swallow the answer and end the connection: done, and nobody hears of it.

`heal` ends all of it: what a stall held up is then delivered, however late.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

Address: TypeAlias = "Path | tuple[str, int]"

_POSTGRES_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Listens at `address` and passes on to `target`. Port 0 takes a free one, which `address` then names."""

    def __init__(self, address: Address, target: Address) -> None:
        self.address = address
        self.target = target
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._drops: list[tuple[bytes, asyncio.Future[None]]] = []

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    async def start(self) -> None:
        """Takes connections."""
        if self._server is not None:
            return
        if isinstance(self.address, Path):
            self._server = await asyncio.start_unix_server(self._accept, self.address, backlog=1024)
        else:
            host, port = self.address
            self._server = await asyncio.start_server(self._accept, host, port, backlog=1024)
            self.address = (host, self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Ends all connections and takes no more."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what it does to its clients -----------------------------------------------------------------------

    def cut(self) -> None:
        """Ends all connections without a word."""
        for link in self._links:
            link.abort()

    def refuse(self) -> None:
        """From now on there is nobody to connect to. Open connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if isinstance(self.address, Path):
                self.address.unlink(missing_ok=True)

    def vanish(self) -> None:
        """As if the server had gone."""
        self.refuse()
        self.cut()

    def stall(self) -> None:
        """From now on nothing passes, and connections stay open."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """From now on everything arrives this much later, one way."""
        self._delay = seconds

    def drop_reply(self, containing: bytes = b"") -> asyncio.Future[None]:
        """Swallows the next answer, or the next that holds these bytes, and ends its connection; done when it has."""
        dropped = asyncio.get_running_loop().create_future()
        self._drops.append((containing, dropped))
        return dropped

    async def heal(self) -> None:
        """All is well again."""
        self._drops.clear()
        self._delay = 0.0
        self._flowing.set()
        await self.start()

    # -- passing bytes -------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self.target, Path):
                far_reader, far_writer = await asyncio.open_unix_connection(self.target)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:  # the server is away: so is its proxy
            writer.transport.abort()
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        try:
            pumps = (self._pump(link, reader, far_writer, False), self._pump(link, far_reader, writer, True))
            await asyncio.gather(*pumps)
        finally:
            self._links.discard(link)
            link.abort()

    async def _pump(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, replies: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                await self._held_up()
                if sink.is_closing():
                    return
                if replies and self._swallows(data):
                    link.abort()
                    return
                sink.write(data)
                await sink.drain()
        await self._held_up()  # so is the news that a side has left
        if not sink.is_closing():
            sink.close()

    async def _held_up(self) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        if not self._flowing.is_set():
            await self._flowing.wait()

    def _swallows(self, data: bytes) -> bool:
        for place, (containing, dropped) in enumerate(self._drops):
            if containing in data:
                del self._drops[place]
                if not dropped.done():
                    dropped.set_result(None)
                return True
        return False


class _Link:
    """One client's connection and the one to the server that was made for it."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = (near, far)

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def before_postgres(folder: Path, database_url: str) -> tuple[Proxy, str]:
    """A proxy for the server on a unix socket that the URL names, and the URL that leads through it."""
    found = re.search(r"(?<=[?&]host=)[^&]+", database_url)
    assert found is not None, f"no unix socket in {database_url}"
    folder.mkdir(parents=True, exist_ok=True)
    proxy = Proxy(folder / _POSTGRES_SOCKET, Path(found.group()) / _POSTGRES_SOCKET)
    return proxy, database_url.replace(found.group(), str(folder))


def before_redis(folder: Path, redis_url: str) -> tuple[Proxy, str]:
    """The same for Redis."""
    path, mark, query = redis_url.removeprefix("unix://").partition("?")
    folder.mkdir(parents=True, exist_ok=True)
    proxy = Proxy(folder / "redis.sock", Path(path))
    return proxy, f"unix://{proxy.address}{mark}{query}"


@asynccontextmanager
async def serving(proxy: Proxy) -> AsyncIterator[Proxy]:
    """At work for the time of the block."""
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
