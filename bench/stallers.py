"""Viewers who ask for a stream and then read nothing. `python -m bench.stallers` waits for commands."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from bench.commands import serve

_LOOK_EVERY = 0.1
_RECEIVE_BUFFER = 4096


class Stallers:
    """Plain sockets with small buffers: the kernel's share in what they cost is that of the other side."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    async def open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Opens `count` streams of `path` and reads their heads."""
        loop = asyncio.get_running_loop()
        request = f"GET {command['path']} HTTP/1.1\r\nhost: bench\r\nauthorization: {command['authorization']}\r\n\r\n"
        for _ in range(command["count"]):
            staller = socket.socket()
            staller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            staller.setblocking(False)
            await loop.sock_connect(staller, (command["host"], command["port"]))
            await loop.sock_sendall(staller, request.encode())
            self._sockets.append(staller)
        for staller in self._sockets:
            await loop.sock_recv(staller, 64)
        return {}

    async def gone(self, command: dict[str, Any]) -> dict[str, Any]:
        """Waits `seconds` at most until all of them were given up: how many are left, and when the last went."""
        deadline = time.monotonic() + command["seconds"]
        left = list(self._sockets)
        last = 0.0
        while left and (now := time.monotonic()) < deadline:
            still = [one for one in left if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
            if len(still) < len(left):
                left, last = still, now
            await asyncio.sleep(_LOOK_EVERY)
        return {"left": len(left), "last_at": last}


if __name__ == "__main__":
    stallers = Stallers()
    serve(open=stallers.open, gone=stallers.gone)
