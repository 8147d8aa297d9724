"""The proxy does to its clients what it says, over both kinds of socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.faults.proxy import Proxy, serving
from tests.waiting import eventually

KINDS = ("unix", "tcp")


class Echo:
    """A server that answers each line with itself, behind a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.asked: list[bytes] = []
        self.clients: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.asked.append(line)
                writer.write(line)
        writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.proxy.address
        if isinstance(address, Path):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
        self.clients.append(writer)
        return reader, writer


@pytest.fixture(params=KINDS)
async def echo(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Echo]:
    if request.param == "unix":
        place = folder / uuid4().hex[:8]
        place.mkdir()
        echo = Echo(Proxy(place / "proxy", place / "server"))
        server = await asyncio.start_unix_server(echo.serve, place / "server")
    else:
        echo = Echo(Proxy(("127.0.0.1", 0), ("127.0.0.1", 0)))
        server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
        echo.proxy.target = ("127.0.0.1", server.sockets[0].getsockname()[1])
    async with server, serving(echo.proxy):
        yield echo
        for client in echo.clients:
            client.close()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes = b"hello\n") -> bytes:
    """The answer; nothing where the connection has ended."""
    try:
        writer.write(line)
        return await reader.readline()
    except ConnectionError:
        return b""


async def test_healthy_it_passes_everything_and_the_end_too(echo: Echo) -> None:
    reader, writer = await echo.connect()
    big = b"x" * 60_000 + b"\n"
    assert [await asked(reader, writer), await asked(reader, writer, big)] == [b"hello\n", big]
    writer.close()
    await writer.wait_closed()

    async def none_left() -> bool:
        return not echo.proxy.connections

    await eventually(none_left)


async def test_a_cut_ends_connections_and_new_ones_are_served(echo: Echo) -> None:
    old = await echo.connect()
    assert await asked(*old)
    echo.proxy.cut()
    assert await asked(*old) == b""
    assert await asked(*await echo.connect()) == b"hello\n"


async def test_a_server_that_vanished_takes_no_connection_until_it_is_back(echo: Echo) -> None:
    old = await echo.connect()
    assert await asked(*old)
    echo.proxy.vanish()
    assert await asked(*old) == b""
    with pytest.raises(OSError):
        await echo.connect()
    await echo.proxy.heal()
    assert await asked(*await echo.connect()) == b"hello\n"


async def test_what_a_stall_held_up_is_delivered_when_it_is_over(echo: Echo) -> None:
    old = await echo.connect()
    assert await asked(*old)
    echo.proxy.stall()
    waiting = asyncio.create_task(asked(*old, b"late\n"))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    assert echo.asked == [b"hello\n"]
    await echo.proxy.heal()
    assert await waiting == b"late\n"


async def test_a_delay_counts_both_ways(echo: Echo) -> None:
    old = await echo.connect()
    echo.proxy.delay(0.05)
    began = time.monotonic()
    assert await asked(*old) == b"hello\n"
    assert time.monotonic() - began >= 0.1


async def test_a_dropped_reply_was_asked_for_and_is_never_heard(echo: Echo) -> None:
    one, other = await echo.connect(), await echo.connect()
    dropped = echo.proxy.drop_reply(b"second")
    assert await asked(*one, b"first\n") == b"first\n"
    assert await asked(*one, b"second\n") == b""
    assert dropped.done()
    assert echo.asked == [b"first\n", b"second\n"]
    assert await asked(*other, b"second\n") == b"second\n"
