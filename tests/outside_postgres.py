"""An org's own Postgres, as it is reached over TCP: a database of the tests' server behind a proxy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.faults.proxy import Proxy, serving


@dataclass(frozen=True, slots=True)
class OutsidePostgres:
    """`address` is its host:port. Roles: `reader` may read shop.orders, `writer` may write, `filer` reads the server's
    files, `longhaul` is a superuser."""

    proxy: Proxy
    address: str
    database: str
    admin: asyncpg.Pool[asyncpg.Record]

    def dsn(self, role: str = "reader") -> str:
        return f"postgresql://{role}:secret-of-{role}@{self.address}/{self.database}?sslmode=disable"


@asynccontextmanager
async def outside_postgres(url: str) -> AsyncIterator[OutsidePostgres]:
    """Fills the database at `url` with a shop of 1,000 orders, and serves it for the time of the block."""
    folder = re.search(r"(?<=[?&]host=)[^&]+", url)
    name = re.search(r"/(test_\d+)\?", url)
    assert folder is not None
    assert name is not None
    pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
    await pool.execute(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id integer, customer text, amount numeric, note text);"
        "INSERT INTO shop.orders SELECT n, 'customer ' || n % 3, n * 1.5, NULL FROM generate_series(1, 1000) n;"
        "CREATE TABLE shop.salaries (who text);"
        "COMMENT ON TABLE shop.orders IS 'one row per order';"
    )
    for role in ("reader", "writer", "filer"):
        await pool.execute(
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD 'secret-of-{role}';"
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
    await pool.execute(
        "GRANT pg_read_server_files TO filer; GRANT USAGE ON SCHEMA shop TO reader, writer, filer;"
        "GRANT SELECT ON shop.orders TO reader;"
        "GRANT ALL ON ALL TABLES IN SCHEMA shop TO writer; GRANT CREATE ON SCHEMA shop TO writer;"
    )
    proxy = Proxy(("127.0.0.1", 0), Path(folder.group()) / ".s.PGSQL.5432")
    async with serving(proxy):
        assert isinstance(proxy.address, tuple)
        yield OutsidePostgres(proxy, "{}:{}".format(*proxy.address), name.group(1), pool)
    await pool.close()
