"""`longhaul workers`: who is at work, how full, and who has gone silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cli.deployment import with_database
from cli.dev import DataDir
from cli.migrate import DatabaseUrl

if TYPE_CHECKING:
    from kernel.postgres import Pool
    from kernel.workers import Worker

# Two heartbeats of the usual interval.
_SILENT_AFTER = 6.0


def workers(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Show the workers: slots in use, since when they run, when they were last heard of."""

    async def work(pool: Pool) -> list[Worker]:
        from kernel.workers import list_workers

        return await list_workers(pool)

    found = with_database(work, database_url, data_dir)
    for worker in found:
        state = "silent" if worker.silent_seconds > _SILENT_AFTER else "live"
        typer.echo(
            f"{worker.id:32}  {state:6}  {worker.running:3} of {worker.slots} slots  "
            f"since {worker.started_at:%Y-%m-%d %H:%M}  heard {worker.silent_seconds:.0f} s ago"
        )
    if not found:
        typer.echo("no workers: start some with `longhaul worker`", err=True)
