"""Migrations: applied once however many run them, refused when the files and the database do not agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count

import asyncpg
import pytest

from cli.embedded import EmbeddedServers
from migrations.runner import Migration, MigrationFailed, known_migrations, migrate, pending

EmptyDatabase = Callable[[], Awaitable[str]]


@pytest.fixture(scope="module")
def empty_database(servers: EmbeddedServers) -> EmptyDatabase:
    """Makes a database with nothing in it."""
    numbers = count(1)

    async def make() -> str:
        name = f"empty_{next(numbers)}"
        admin = await asyncpg.connect(servers.database_url)
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        return servers.database_url.replace("@/longhaul?", f"@/{name}?")

    return make


@pytest.fixture
async def migrated(empty_database: EmptyDatabase) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    url = await empty_database()
    await migrate(url)
    connection = await asyncpg.connect(url)
    yield url, connection
    await connection.close()


NAMES = [migration.name for migration in known_migrations()]


async def test_files_are_applied_in_order_and_a_second_run_finds_nothing_to_do(empty_database: EmptyDatabase) -> None:
    url = await empty_database()
    assert await migrate(url) == NAMES
    assert sorted(NAMES) == NAMES
    assert await migrate(url) == []


async def test_runners_that_start_at_once_apply_every_file_once(empty_database: EmptyDatabase) -> None:
    url = await empty_database()
    outcomes = await asyncio.gather(*(migrate(url) for _ in range(6)))
    assert sorted(outcomes, key=len) == [[], [], [], [], [], NAMES]


async def test_an_applied_file_that_was_edited_is_refused(migrated: tuple[str, asyncpg.Connection]) -> None:
    url, connection = migrated
    await connection.execute("UPDATE schema_migrations SET checksum = 'other' WHERE name = $1", NAMES[0])
    with pytest.raises(MigrationFailed, match=rf"{NAMES[0]} was edited .* restore the file"):
        await migrate(url)


async def test_a_database_of_a_newer_release_is_refused(migrated: tuple[str, asyncpg.Connection]) -> None:
    url, connection = migrated
    await connection.execute("INSERT INTO schema_migrations (name, checksum) VALUES ('9999_future.sql', 'x')")
    with pytest.raises(MigrationFailed, match=r"9999_future\.sql.*does not know"):
        await migrate(url)


async def test_a_file_that_fails_leaves_nothing_behind_and_names_itself(empty_database: EmptyDatabase) -> None:
    url = await empty_database()
    connection = await asyncpg.connect(url)
    # The last table of the first file is there already: all that comes before it has to go again.
    await connection.execute("CREATE TABLE workers (id text)")
    with pytest.raises(MigrationFailed, match=rf'{NAMES[0]}: relation "workers" already exists'):
        await migrate(url)
    tables = await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    assert {"schema_migrations", "workers"} <= {row["relname"] for row in tables}
    assert "orgs" not in {row["relname"] for row in tables}
    assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == 0
    await connection.execute("DROP TABLE workers")
    assert await migrate(url) == NAMES
    await connection.close()


async def test_a_failed_file_leaves_those_before_it_applied(empty_database: EmptyDatabase) -> None:
    url = await empty_database()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE memories (id text)")
    with pytest.raises(MigrationFailed, match=r"0002_memories\.sql"):
        await migrate(url)
    rows = await connection.fetch("SELECT name FROM schema_migrations")
    assert [row["name"] for row in rows] == ["0001_spine.sql"]
    await connection.close()


async def test_a_table_that_is_in_use_makes_a_migration_give_up_instead_of_blocking_it(
    migrated: tuple[str, asyncpg.Connection],
) -> None:
    url, connection = migrated
    await connection.execute("DELETE FROM schema_migrations WHERE name = '0002_memories.sql'")
    await connection.execute("DROP TABLE memories CASCADE")
    async with connection.transaction():
        await connection.execute("LOCK TABLE orgs IN ACCESS EXCLUSIVE MODE")  # 0002 refers to it
        with pytest.raises(MigrationFailed, match="lock timeout"):
            await migrate(url, lock_timeout=0.1)
    assert await migrate(url) == ["0002_memories.sql"]


async def test_a_database_that_is_not_there_is_an_error_of_the_connection(servers: EmbeddedServers) -> None:
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await migrate(servers.database_url.replace("@/longhaul?", "@/no_such_database?"))


def test_what_is_pending_are_the_files_that_were_not_applied() -> None:
    files = [Migration(f"000{number}_x.sql", "", f"sum{number}") for number in (1, 2, 3)]
    assert pending(files, {}) == files
    assert pending(files, {"0001_x.sql": "sum1"}) == files[1:]
    assert pending(files, {"0001_x.sql": "sum1", "0002_x.sql": "sum2", "0003_x.sql": "sum3"}) == []
