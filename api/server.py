"""The HTTP server: uvicorn on a listening socket of our own, made for many open streams and a clean end.

Accepted sockets inherit the options of the listening one: a small send buffer, so that a viewer who stops reading
pins little kernel memory, and a limit on how long unread data may wait, after which its connection is dropped.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_BACKLOG: Final = 4096
_SEND_BUFFER_BYTES: Final = 64 * 1024
_UNREAD_MILLISECONDS: Final = 30_000
_GRACE_SECONDS: Final = 10
_KEEP_ALIVE_SECONDS: Final = 65  # longer than the idle time of common load balancers
_GC_THRESHOLD: Final = (50_000, 20, 100)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        OSError: the address is taken or not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MILLISECONDS)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """uvicorn, which alone would wait for open streams for ever. Ends with exit code 0 when it is told to stop."""

    def __init__(self, app: ASGIApp, *, end_streams: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._end_streams = end_streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts; what is there by then lives as long as the process, so the collector need not look at it again."""
        await super().startup(sockets=sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends all streams and lets requests finish; a second SIGINT ends at once."""
        self._end_streams()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """A signal that was obeyed is not raised again, or the process would seem to have died of it."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()
