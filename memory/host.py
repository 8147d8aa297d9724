"""How a process gets its memory: the backend that the settings name, opened for as long as the process needs it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from redis.asyncio import Redis

from kernel.errors import BadSettings
from kernel.plugins import plugins
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.port import Memory

_METHODS: Final = (
    *("remember", "remember_all", "recall", "get", "list", "change", "supersede", "forget", "forget_document"),
    *("erase",),
)


@dataclass(frozen=True, slots=True)
class MemoryHost:
    """Given to memory backends that are made by a function or class with one argument.

    All of it belongs to the process, which is an API or a worker: close nothing. Redis may be away, and forget all
    that is in it, at any time.
    """

    settings: Settings = field(repr=False)
    db: Pool = field(repr=False)
    redis: Redis = field(repr=False)


@asynccontextmanager
async def open_memory(host: MemoryHost) -> AsyncIterator[Memory]:
    """The memory of this process.

    Raises:
        BadSettings: there is no such backend, it can't be loaded, or the embedder's settings are wrong.
    """
    name = host.settings.memory
    if name == "postgres":
        # Imported here, because an API process may do without.
        from memory.opening import postgres_memory

        async with postgres_memory(host.settings, host.db) as memory:
            yield memory
        return
    found = plugins("memory")
    if name not in found:
        raise BadSettings(
            f"LONGHAUL_MEMORY: there is no memory backend {name!r}.",
            suggestions=(f"use one of: {', '.join(['postgres', *found])}",),
        )
    backend = found[name].make(_a_memory, "a Memory (see memory/port.py)", host)
    try:
        yield backend
    finally:
        if (close := getattr(backend, "aclose", None)) is not None:
            await close()


def _a_memory(found: object) -> Memory | None:
    fits = all(inspect.iscoroutinefunction(getattr(found, name, None)) for name in _METHODS)
    # A Protocol's signatures can't be looked at: `memory/conformance.py` tries them.
    return found if fits and callable(getattr(found, "export", None)) else None  # type: ignore[return-value]
