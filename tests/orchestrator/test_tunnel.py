"""The tunnel: what a library with an HTTP client of its own reaches through it, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from orchestrator.egress.gate import Gate
from orchestrator.egress.tunnel import Tunnel

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echoing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(4096):
        writer.write(piece)
    writer.close()


async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        for _ in range(64):
            writer.write(bytes(16 * 1024))
            await writer.drain()
    except OSError:
        pass
    writer.close()


async def loopback(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


@asynccontextmanager
async def tunnel(*allow: str, **more: float) -> AsyncIterator[Tunnel]:
    made = Tunnel(Gate(allow), resolve=loopback, **more)  # type: ignore[arg-type]  # numbers of both kinds
    try:
        yield made
    finally:
        await made.aclose()


async def asked(
    tunnel: Tunnel, host: bytes, port: int, *, kind: int = 3, command: int = 1, password: str | None = None
) -> tuple[int | None, asyncio.StreamReader, asyncio.StreamWriter]:
    """What the tunnel replies, None where it lets nobody in; and the connection."""
    url = urlsplit(await tunnel.url())
    assert (url.scheme, url.hostname) == ("socks5h", "127.0.0.1")
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    user, secret = (url.username or "").encode(), (password or url.password or "").encode()
    writer.write(b"\x05\x01\x02")
    assert await reader.readexactly(2) == b"\x05\x02"
    writer.write(bytes((1, len(user))) + user + bytes((len(secret),)) + secret)
    if await reader.readexactly(2) != b"\x01\x00":
        return None, reader, writer
    name = bytes((len(host),)) + host if kind == 3 else host
    writer.write(bytes((5, command, 0, kind)) + name + port.to_bytes(2, "big"))
    return (await reader.readexactly(10))[1], reader, writer


async def test_what_is_allowed_is_reached_by_name_and_by_address() -> None:
    async with listening(echoing) as port, tunnel(f"inside.example:{port}", f"127.0.0.1:{port}") as way:
        for host, kind in ((b"inside.example", 3), (b"127.0.0.1", 3), (bytes((127, 0, 0, 1)), 1)):
            code, reader, writer = await asked(way, host, port, kind=kind)
            assert code == 0
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        (b"127.0.0.1", 3),
        (b"127.1", 3),
        (b"0x7f.1", 3),
        (b"::1", 3),
        (b"inside.example", 3),
        (b"what is this", 3),
        (b"user@inside.example", 3),
        (b"\xff\xfe", 3),
        (bytes((127, 0, 0, 1)), 1),
        (bytes((169, 254, 169, 254)), 1),
        (bytes(15) + b"\x01", 4),
        (bytes(10) + b"\xff\xff\x7f\x00\x00\x01", 4),
    ],
)
async def test_nothing_private_is_reached(host: bytes, kind: int) -> None:
    reached = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    async with listening(never) as port, tunnel() as way:
        code, reader, writer = await asked(way, host, port, kind=kind)
        assert (code, await reader.read()) == (2, b"")
        writer.close()
    assert not reached.is_set()


async def test_what_does_not_answer_is_unreachable() -> None:
    async with listening(echoing) as port:
        pass
    async with tunnel(f"127.0.0.1:{port}") as way:
        code, _, writer = await asked(way, b"127.0.0.1", port)
        assert code == 4
        writer.close()


async def test_nobody_gets_in_without_the_password() -> None:
    async with tunnel() as way:
        code, reader, writer = await asked(way, b"example.com", 443, password="guessed")
        assert (code, await reader.read()) == (None, b"")
        writer.close()
        url = urlsplit(await way.url())
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"\x05\x01\x00")
        assert await reader.read() == b"\x05\xff"
        writer.close()


async def test_it_connects_and_nothing_else() -> None:
    async with tunnel() as way:
        code, _, writer = await asked(way, b"example.com", 443, command=2)
        assert code == 7
        writer.close()


async def test_no_more_comes_back_than_the_cap_and_a_piece() -> None:
    async with listening(flooding) as port, tunnel(f"127.0.0.1:{port}", max_bytes=100_000) as way:
        _, reader, writer = await asked(way, b"127.0.0.1", port)
        assert 100_000 <= len(await reader.read()) < 100_000 + 65_536
        writer.close()


async def test_a_connection_ends_when_its_time_is_over() -> None:
    async with listening(echoing) as port, tunnel(f"127.0.0.1:{port}", seconds=0.2) as way:
        _, reader, writer = await asked(way, b"127.0.0.1", port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_what_is_open_is_cut_when_it_is_closed() -> None:
    async with listening(echoing) as port:
        async with tunnel(f"127.0.0.1:{port}") as way:
            _, reader, writer = await asked(way, b"127.0.0.1", port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
