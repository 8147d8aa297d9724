"""`longhaul migrate`: brings the schema up to date, before a release starts."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cli.dev import DataDir

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", envvar="DATABASE_URL", help="Postgres; by default that of the running dev stack."),
]


def migrate(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Apply the migrations that the database lacks. Safe to run by several at once."""
    from cli.database import migrate_database
    from cli.state import default_directory, find_running

    target = database_url or find_running(data_dir or default_directory()).database_url
    applied = asyncio.run(migrate_database(target))
    for name in applied:
        typer.echo(f"applied {name}")
    if not applied:
        typer.echo("the schema is up to date")
