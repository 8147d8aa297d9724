"""One connection of a client, under uvicorn's HTTP protocol.

uvicorn hands an answer's head to the socket before its body is there: two system calls and two packets for each
answer. Here the head waits for what follows it, for one turn of the event loop at most. And every write is followed
by a look at what the socket did not take, so that stalled clients are known without a look at all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from api.stalled import StalledClients


class Connection(HttpToolsProtocol):
    """uvicorn's protocol on a transport of ours."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        stalled: StalledClients,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._stalled = stalled

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(cast(asyncio.Transport, ClientTransport(transport, self._stalled)))


class ClientTransport:
    """Writes the head of an answer together with what is written next, and reports what stays unsent."""

    __slots__ = ("_head", "_stalled", "_transport")

    def __init__(self, transport: asyncio.Transport, stalled: StalledClients) -> None:
        self._transport = transport
        self._stalled = stalled
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._write(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._write(head)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        transport.write(data)
        if transport.get_write_buffer_size():
            self._stalled.watch(transport)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
