"""A way out for libraries that bring an HTTP client of their own: a SOCKS5 proxy on loopback, kept to the egress rules.

Such a library is handed `Tunnel.url` as its proxy. Each of its connections, the first as one after a redirect, then
names a host here; the gate decides, the name is resolved here, and what is connected to is the address that was
judged. TLS goes through untouched. Nobody else on the machine can use the tunnel: it takes a password of its own.
"""

from __future__ import annotations

import asyncio
import socket
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address
from secrets import token_hex
from typing import Final

from orchestrator.egress.addresses import literal
from orchestrator.egress.errors import EgressRefused
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import GatedResolver, Resolve, SystemResolver

_USER: Final = b"longhaul"
_VERSION: Final = 5
_BY_PASSWORD: Final = 2
_NO_WAY_IN: Final = 0xFF
_CONNECT: Final = 1
_DONE, _NOT_ALLOWED, _UNREACHABLE, _NOT_SUPPORTED = 0, 2, 4, 7
_PIECE: Final = 64 * 1024


class Tunnel:
    """A proxy for any number of connections. Listens from the first `url` on.

    Args:
        gate: what may be reached.
        resolve: names to addresses; the operating system's resolver if None.
        seconds: how long a connection may last.
        max_bytes: how much may come back over one, as it is on the wire.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        resolve: Resolve | None = None,
        seconds: float = 20.0,
        max_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._gate = gate
        self._system = SystemResolver() if resolve is None else None
        self._resolver = GatedResolver(gate, resolve or self._system)  # type: ignore[arg-type]  # one of them is there
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._password: Final = token_hex(16).encode()
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._open: set[asyncio.Task[None]] = set()

    async def url(self) -> str:
        """What the library is given as its proxy: names are resolved here, not by it."""
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"socks5h://{_USER.decode()}:{self._password.decode()}@127.0.0.1:{port}"

    async def aclose(self) -> None:
        """Cuts all connections. It must not be used afterwards."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._system is not None:
            self._system.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._seconds):
                if not await self._let_in(reader, writer):
                    return
                asked = await _asked(reader)
                if asked is None:
                    writer.write(_reply(_NOT_SUPPORTED))
                    return
                try:
                    back, there = await self._connected(*asked)
                except EgressRefused:
                    writer.write(_reply(_NOT_ALLOWED))
                    return
                except (OSError, ValueError):
                    writer.write(_reply(_UNREACHABLE))
                    return
                writer.write(_reply(_DONE))
                await self._carry(reader, writer, back, there)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # whoever waits at one end sees the connection close
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """RFC 1928 section 3 and RFC 1929."""
        version, count = await reader.readexactly(2)
        if version != _VERSION or _BY_PASSWORD not in await reader.readexactly(count):
            writer.write(bytes((_VERSION, _NO_WAY_IN)))
            return False
        writer.write(bytes((_VERSION, _BY_PASSWORD)))
        _, length = await reader.readexactly(2)
        user = await reader.readexactly(length)
        password = await reader.readexactly((await reader.readexactly(1))[0])
        known = compare_digest(user, _USER) & compare_digest(password, self._password)
        writer.write(bytes((1, 0 if known else 1)))
        return known

    async def _connected(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises EgressRefused, or OSError where there is no connection."""
        url = self._gate.url(f"https://{f'[{host}]' if ':' in host else host}:{port}/")
        assert url.raw_host is not None
        address = literal(url.raw_host)
        if address is not None:
            found = self._gate.addresses(url.raw_host, port, [str(address)])
        else:
            found = [entry["host"] for entry in await self._resolver.resolve(url.raw_host, port)]
        problem = OSError(f"{host}:{port} can't be reached")
        for to in found:
            family = socket.AF_INET6 if ":" in to else socket.AF_INET
            opened = self._gate.socket((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (to, port)))
            try:
                opened.setblocking(False)
                await asyncio.get_running_loop().sock_connect(opened, (to, port))
                return await asyncio.open_connection(sock=opened)
            except OSError as error:
                opened.close()
                problem = error
            except BaseException:
                opened.close()
                raise
        raise problem

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        there: asyncio.StreamWriter,
    ) -> None:
        """Both ways, until what is asked has closed its end, or the other side is gone."""
        sending = asyncio.create_task(_pump(reader, there, None))
        try:
            await _pump(back, writer, self._max_bytes)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _asked(reader: asyncio.StreamReader) -> tuple[str, int] | None:
    """The host and port to connect to; None where something else is asked. RFC 1928 section 4."""
    version, command, _, kind = await reader.readexactly(4)
    if version != _VERSION or command != _CONNECT:
        return None
    match kind:
        case 1:
            host = str(IPv4Address(await reader.readexactly(4)))
        case 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii", "replace")
        case 4:
            host = str(IPv6Address(await reader.readexactly(16)))
        case _:
            return None
    return host, int.from_bytes(await reader.readexactly(2), "big")


def _reply(code: int) -> bytes:
    return bytes((_VERSION, code, 0, 1)) + bytes(6)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
    while (most is None or most > 0) and (piece := await reader.read(_PIECE)):
        writer.write(piece)
        await writer.drain()
        most = None if most is None else most - len(piece)
    if most is None and writer.can_write_eof():
        writer.write_eof()
