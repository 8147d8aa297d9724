"""What the command line does in the database itself: migrations, and the development org with its key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cli.errors import DatabaseFailed
from kernel.errors import Unauthenticated
from kernel.postgres import UNAVAILABLE, Pool, open_pool
from kernel.tenants import authenticate, create_key, ensure_org
from migrations.runner import MigrationFailed, migrate

DEV_ORG = "default"


async def migrate_database(database_url: str) -> list[str]:
    """The names of the files applied now. Raises DatabaseFailed."""
    try:
        return await migrate(database_url)
    except MigrationFailed as error:
        raise DatabaseFailed(f"The migration failed: {error}") from error
    except UNAVAILABLE as error:
        raise DatabaseFailed(
            f"Postgres can't be reached: {error}", suggestions=("check DATABASE_URL and that the server is up",)
        ) from error


async def prepared_api_key(database_url: str, known: str | None, say: Callable[[str], None]) -> str:
    """Migrates, and gives a key of the development org: `known` if the database takes it, else a new one."""
    if applied := await migrate_database(database_url):
        say(f"applied migrations: {', '.join(applied)}")
    async with database(database_url) as pool:
        if known is not None:
            try:
                await authenticate(pool, known)
                return known
            except Unauthenticated:
                say("the kept API key is not in this database, making another")
        org = await ensure_org(pool, DEV_ORG)
        return (await create_key(pool, org, name="dev")).secret.get_secret_value()


@asynccontextmanager
async def database(database_url: str) -> AsyncIterator[Pool]:
    """A small pool for one command. Raises StoreUnavailable."""
    pool = await open_pool(database_url, size=2, name="longhaul-cli")
    try:
        yield pool
    finally:
        await pool.close()
