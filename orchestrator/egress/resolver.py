"""Names to addresses, once per connection, each answer judged before it is used."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from orchestrator.egress.gate import Gate

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, as text, best first. Raises OSError where there are none."""

_LOOKUPS_AT_ONCE: Final = 16
_ADDRESSES_TRIED: Final = 8


class SystemResolver:
    """The resolver of the operating system, on threads of its own.

    A name server that never answers holds a thread for many seconds. On the event loop's shared threads, a few
    such names would stop everything else that needs one.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
        return list(dict.fromkeys(str(info[4][0]) for info in infos))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _look_up(host: str, port: int) -> Sequence[tuple[object, object, object, object, tuple[object, ...]]]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class GatedResolver(AbstractResolver):
    """What the HTTP library connects to: only what the gate let through, as bare addresses."""

    def __init__(self, gate: Gate, resolve: Resolve) -> None:
        self._gate = gate
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = (await self._resolve(host, port))[:_ADDRESSES_TRIED]
        if not found:
            raise OSError(f"{host} has no address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._gate.addresses(host, port, found)
        ]

    async def close(self) -> None:
        return
