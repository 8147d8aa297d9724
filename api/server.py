"""The HTTP server: uvicorn on a listening socket of our own, made for many open streams and a clean end.

Accepted sockets inherit the options of the listening one: a small send buffer, so that a viewer who stops reading
pins little kernel memory, and a limit on how long unread data may wait, after which its connection is dropped. That
limit is the kernel's; ours comes before it (`stalled`).
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final, cast

import structlog
import uvicorn
from starlette.types import ASGIApp

from api.connection import Connection
from api.heap import Heap
from api.stalled import StalledClients

log = structlog.get_logger(__name__)

_BACKLOG: Final = 4096
_SEND_BUFFER_BYTES: Final = 32 * 1024  # Linux doubles it
_UNREAD_MILLISECONDS: Final = 25_000
_SWEEP_TICKS: Final = 10  # of a tenth of a second
_GRACE_SECONDS: Final = 10
_UNREAD_AT_THE_END_SECONDS: Final = 2.0
_KEEP_ALIVE_SECONDS: Final = 65  # longer than the idle time of common load balancers
_GC_THRESHOLD: Final = (200_000, 20, 100)
_ENOUGH_FILES: Final = 12_288  # ten thousand streams and what else a process opens


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


def raise_open_files() -> None:
    """Lets the process open as many files as the system allows it: each client takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS has a limit of its own below an infinite one
        log.warning("open_files_not_raised", limit=soft, error=str(error))
        hard = soft
    log.info("open_files", limit=hard, before=soft)
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_FILES:
        log.warning(
            "few_open_files",
            limit=hard,
            effect=f"no more than about {max(0, hard - 100)} clients can be connected at once",
            suggestion=f"raise the hard limit to {_ENOUGH_FILES} or more: LimitNOFILE= in systemd, else ulimit -Hn",
        )


class Server(uvicorn.Server):
    """uvicorn, which alone would wait for open streams for ever. Ends with exit code 0 when it is told to stop.

    A client that has read nothing of what waits for it for `write_timeout` seconds is given up.
    """

    def __init__(self, app: ASGIApp, *, end_streams: Callable[[], None], write_timeout: float = 20.0) -> None:
        self._stalled = StalledClients()
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=cast(type[asyncio.Protocol], partial(Connection, stalled=self._stalled)),
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
        self._write_timeout = write_timeout
        self._heap = Heap.of_this_process()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts; what is there by then lives as long as the process, so the collector need not look at it again."""
        await super().startup(sockets=sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % _SWEEP_TICKS == 0:
            self._stalled.sweep(patience=self._write_timeout)
            self._heap.look_after(self.server_state.total_requests, len(self.server_state.connections))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets requests finish. Clients who read nothing of their answers are not waited for."""
        sweeping = asyncio.create_task(self._sweep_often(), name="sweep-at-the-end")
        try:
            await super().shutdown(sockets)
        finally:
            sweeping.cancel()

    async def _sweep_often(self) -> None:
        while True:
            self._stalled.sweep(patience=_UNREAD_AT_THE_END_SECONDS)
            await asyncio.sleep(_UNREAD_AT_THE_END_SECONDS / 4)

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
