"""Applies the numbered SQL files of this package, each exactly once, in order.

Safe to run by several processes at once: one holds an advisory lock, the others wait and find the work done.
A file is applied in one transaction with lock and statement timeouts, so a migration that would block a busy
table gives up instead. What was applied is kept with its checksum: an applied file that was edited since is an
error, and so is a database that is newer than this release.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import asyncpg

_LOCK = 0x4C4F4E47  # any constant; "LONG" in ASCII
_FILE = re.compile(r"^(\d{4})_\w+\.sql$")


class MigrationFailed(Exception):
    """The schema could not be brought up to date; says which file and why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name, such as `0001_spine.sql`, its text and the SHA-256 of that text in hex."""

    name: str
    text: str
    checksum: str


def known_migrations() -> list[Migration]:
    """The files of this release, in order of their numbers."""
    found = []
    for entry in resources.files(__package__ or "migrations").iterdir():
        if _FILE.match(entry.name):
            text = entry.read_text("utf-8")
            found.append(Migration(entry.name, text, hashlib.sha256(text.encode()).hexdigest()))
    return sorted(found, key=lambda migration: migration.name)


def pending(migrations: list[Migration], applied: dict[str, str]) -> list[Migration]:
    """Those of `migrations` that are not in `applied` (name to checksum).

    Raises:
        MigrationFailed: an applied file has changed, or the database has one that this release lacks.
    """
    by_name = {migration.name: migration for migration in migrations}
    for name, checksum in applied.items():
        if name not in by_name:
            raise MigrationFailed(
                f"the database has migration {name}, which this release does not know: deploy a release that has it"
            )
        if by_name[name].checksum != checksum:
            raise MigrationFailed(
                f"migration {name} was edited after it was applied: restore the file and add a new one instead"
            )
    return [migration for migration in migrations if migration.name not in applied]


async def migrate(database_url: str, *, lock_timeout: float = 5.0, statement_timeout: float = 300.0) -> list[str]:
    """Brings the schema up to date and returns the names of the files applied now, oldest first.

    Args:
        lock_timeout: seconds a statement may wait for a table lock before the migration gives up.
        statement_timeout: seconds a single statement may take.

    Raises:
        MigrationFailed: names the file and the reason; files before it stay applied.
        OSError: the database can't be reached.
    """
    connection = await asyncpg.connect(database_url, command_timeout=None)
    try:
        # Waits without a limit: another process is applying the same files.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        return await _apply(connection, lock_timeout, statement_timeout)
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection, lock_timeout: float, statement_timeout: float) -> list[str]:
    await connection.execute(
        """CREATE TABLE IF NOT EXISTS schema_migrations (
               name text PRIMARY KEY,
               checksum text NOT NULL,
               applied_at timestamptz NOT NULL DEFAULT now())"""
    )
    rows = await connection.fetch("SELECT name, checksum FROM schema_migrations ORDER BY name")
    applied = {row["name"]: row["checksum"] for row in rows}
    names = []
    for migration in pending(known_migrations(), applied):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{int(lock_timeout * 1000)}ms'")
                await connection.execute(f"SET LOCAL statement_timeout = '{int(statement_timeout * 1000)}ms'")
                await connection.execute(migration.text)
                await connection.execute(
                    "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)",
                    migration.name,
                    migration.checksum,
                )
        except asyncpg.PostgresError as error:
            raise MigrationFailed(f"{migration.name}: {error}") from error
        names.append(migration.name)
    return names
