"""Where memory is measured: a Postgres of the bench's own, with databases that have our tables and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from cli.console import say
from cli.embedded import EmbeddedServers
from kernel.postgres import Pool, close_pool, open_pool
from kernel.tenants import ensure_org
from memory.embedders.port import Embedder
from memory.store import PostgresMemory
from migrations.runner import migrate

_TEMPLATE: Final = "bench_memory"


@dataclass(frozen=True, slots=True)
class Stage:
    """One database. `pool` is as a worker's."""

    pool: Pool
    url: str

    def memory(self, embedder: Embedder) -> PostgresMemory:
        """Our memory on it, with the patience of a bench."""
        return PostgresMemory(self.pool, embedder, patience=60.0)

    async def org(self, name: str) -> str:
        return await ensure_org(self.pool, name)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection for what takes minutes."""
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def sizes(self) -> dict[str, int]:
        """Bytes of the tables that hold memories, and of their indexes, by name."""
        rows = await self.pool.fetch(
            """
            SELECT c.relname AS name,
                   pg_relation_size(c.oid) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) AS bytes
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'public' AND c.relkind IN ('r', 'i')
                  AND (c.relname IN ('memories', 'memory_words', 'memory_terms') OR c.relname ~ '^memory_space_[0-9]+$'
                       OR c.oid IN (SELECT indexrelid FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
                                    WHERE t.relname IN ('memories', 'memory_words', 'memory_terms')
                                          OR t.relname ~ '^memory_space_[0-9]+$'))
            ORDER BY 1
            """
        )
        return {row["name"]: row["bytes"] for row in rows}


@asynccontextmanager
async def servers(directory: Path, options: Mapping[str, str]) -> AsyncIterator[EmbeddedServers]:
    """Postgres with these settings beside ours, and a template of a migrated database."""
    say("starting Postgres")
    async with EmbeddedServers(directory, options=options) as running:
        admin: asyncpg.Connection[Any] = await asyncpg.connect(running.database_url)
        await admin.execute(f"CREATE DATABASE {_TEMPLATE}")
        await migrate(running.database_url.replace("/longhaul?", f"/{_TEMPLATE}?"))
        await admin.close()
        yield running


@asynccontextmanager
async def stage(running: EmbeddedServers, name: str) -> AsyncIterator[Stage]:
    """A database of this name, gone afterwards."""
    admin: asyncpg.Connection[Any] = await asyncpg.connect(running.database_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        url = running.database_url.replace("/longhaul?", f"/{name}?")
        pool = await open_pool(url, size=4, name="bench", answer_within=900.0)
        try:
            yield Stage(pool, url)
        finally:
            await close_pool(pool)
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
