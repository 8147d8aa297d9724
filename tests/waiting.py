"""Waiting for what sends no signal, such as a row in Postgres: a look every so often, up to a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds after which what was waited for counts as missing. Generous: other work may share the machine."""


async def eventually(
    look: Callable[[], Awaitable[T]], *, within: float = PATIENCE, every: float = 0.01, what: str = ""
) -> T:
    """The first truthy answer of `look`. Fails when there is none `within` so many seconds."""
    deadline = time.monotonic() + within
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what or look}")
        await asyncio.sleep(every)
