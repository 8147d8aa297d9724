"""Longhaul's own memory, put together from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from memory.embedders import choose_embedder
from memory.host import MemoryHost
from memory.store import PostgresMemory


@asynccontextmanager
async def postgres_memory(host: MemoryHost) -> AsyncIterator[PostgresMemory]:
    """`PostgresMemory` with the embedder that the settings name.

    Raises:
        BadSettings: they name none that there is.
    """
    # A local model's files are looked at, which may block.
    embedder = await asyncio.to_thread(choose_embedder, host.settings)
    try:
        yield PostgresMemory(host.db, embedder)
    finally:
        await embedder.aclose()
