"""Longhaul's own memory, put together from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from kernel.postgres import Pool
from kernel.settings import Settings
from memory.embedders import choose_embedder, previous_embedders
from memory.rerankers import choose_reranker
from memory.store import PostgresMemory


@asynccontextmanager
async def postgres_memory(settings: Settings, db: Pool) -> AsyncIterator[PostgresMemory]:
    """`PostgresMemory` with the embedders and the reranker that the settings name.

    Raises:
        BadSettings: they name none that there is.
    """
    async with AsyncExitStack() as stack:
        # A local model's files are looked at, which may block.
        embedder = await asyncio.to_thread(choose_embedder, settings)
        stack.push_async_callback(embedder.aclose)
        previous = await asyncio.to_thread(previous_embedders, settings)
        for one in previous.values():
            stack.push_async_callback(one.aclose)
        reranker = choose_reranker(settings)
        if reranker is not None:
            stack.push_async_callback(reranker.aclose)
        yield PostgresMemory(db, embedder, previous=previous, reranker=reranker)
