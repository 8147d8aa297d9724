"""Asking for a turn to be read: one job for each run that has succeeded, added when the run is over.

The worker that ran it asks as soon as its end is in Postgres, which is after its followers have it. What a worker could
not ask for, because it died in that moment or Postgres was away, is found by a sweep each minute.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from kernel.jobs import add_job
from kernel.leases import ClaimedRun
from kernel.postgres import STORE_ERRORS, Pool
from kernel.sql import statements

log = structlog.get_logger(__name__)

SQL = statements(__package__, "extraction.sql")

EXTRACT: Final = "extract"
"""The kind of the job; its key is the id of the run."""

ATTEMPTS: Final = 8
"""With the pauses between them they take more than two hours."""

LOOKED_BACK: Final = 900.0
"""Seconds that the sweep looks back."""

_SPARED: Final = 15.0  # the run's own worker may be about to ask
_MOST_RUNS: Final = 50_000
_MOST_ASKED: Final = 1_000
_PATIENCE: Final = 3.0
_NO_MODEL: Final = "echo"


class Requests:
    """One per worker. `default` is what agents do that do not say whether they extract."""

    def __init__(self, db: Pool, *, default: bool) -> None:
        self._db = db
        self._default = default

    def wanted(self, run: ClaimedRun) -> bool:
        """Whether the turn of this run is to be read, if it succeeds. Waits for nothing."""
        memory = run.agent.get("memory") or {}
        extract = memory.get("extract")
        if not (self._default if extract is None else extract) or run.workflow == _NO_MODEL:
            return False
        return any(message.role == "user" and not message.path for message in run.messages)

    async def after(self, run: ClaimedRun) -> None:
        """Asks for the turn of a run that has ended. Never raises: what is missed here the sweep finds."""
        if not self.wanted(run):
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                if await self._db.fetchval(SQL.is_due, run.org_id, run.id, EXTRACT):
                    await self._add(run.org_id, run.id)
        except STORE_ERRORS as error:
            log.warning("extraction_not_asked_for", run_id=run.id, error=repr(error), effect="found within a minute")

    async def sweep(self) -> int:
        """Asks for what was missed; for how many runs."""
        arguments = (LOOKED_BACK, _SPARED, self._default, _MOST_RUNS, _MOST_ASKED, EXTRACT)
        rows = await self._db.fetch(SQL.missed, *arguments)
        for row in rows:
            await self._add(row["org_id"], row["id"])
        if rows:
            log.info("extractions_found", runs=len(rows))
        return len(rows)

    async def _add(self, org_id: str, run_id: str) -> None:
        await add_job(self._db, EXTRACT, run_id, org_id=org_id, attempts=ATTEMPTS)
