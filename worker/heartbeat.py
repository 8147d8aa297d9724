"""The heartbeat: keeps the leases of running runs, from a thread with an event loop and a connection of its own.

User code that blocks the worker's main loop must not cost it its leases, nor keep a run alive that is to end: twice
a second the heartbeat looks what callers ask of its runs, ends runs of the whole fleet whose owner should have ended
them by now, settles approvals that nobody decided in time, and ends the leases of workers that were killed, so that
nobody waits for them. When Postgres can't be reached for as long as a lease lasts, the runs are given up: somebody else
may have them by then.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import asyncpg
import structlog

from kernel.approvals import resolve_due
from kernel.fanout import Publisher
from kernel.journal import Journal
from kernel.leases import Leases
from kernel.postgres import UNAVAILABLE
from orchestrator.measures import Measures
from worker.executor import Executor
from worker.vigil import SETTLE_SECONDS, Vigil

log = structlog.get_logger(__name__)

_LOOK_EVERY: Final = 0.4
# How long the owner of a run has to end it by itself. With one look it makes two seconds at most.
_OWNERS_PATIENCE: Final = 1.2
# How late a heartbeat may be before it is looked whether its worker is still there.
_LATE: Final = 0.2


class Heartbeat:
    """Started and stopped by the worker's main loop."""

    def __init__(
        self,
        executor: Executor,
        journal: Journal,
        publisher: Publisher,
        vigil: Vigil,
        *,
        database_url: str,
        worker: str,
        host: str,
        lease_seconds: float,
        renew_seconds: float,
        measures: Measures,
    ) -> None:
        self._executor = executor
        self._journal = journal
        self._publisher = publisher
        self._vigil = vigil
        self._database_url = database_url
        self._worker = worker
        self._host = host
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._measures = measures
        self._main: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="heartbeat", daemon=True)

    def start(self) -> None:
        self._main = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)

    # -- in the thread -------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        connection: Any = None
        named = False
        renewed = time.monotonic()
        next_renewal = 0.0
        while not self._stopping.is_set():
            begun = time.monotonic()
            owned = self._executor.owned()
            try:
                if connection is not None and connection.is_closed():
                    raise ConnectionError("Postgres hung up")
                if connection is None:
                    connection = await asyncpg.connect(self._database_url, timeout=3, command_timeout=3)
                    named = False
                leases = Leases(connection, worker=self._worker, lease_seconds=self._lease_seconds)
                if not named:
                    named = await leases.hold_name()
                if begun >= next_renewal:
                    await self._renew(leases, owned)
                    renewed = begun
                    next_renewal = begun + self._renew_seconds
                await self._look(leases, owned)
                await self._settle(connection)
                await self._watch(leases, begun)
            except Exception as error:  # this thread must not end before the worker does
                log.warning("heartbeat_failed", error=repr(error), runs=len(owned))
                self._vigil.disturbed(time.monotonic())
                next_renewal = 0.0
                if connection is not None:
                    connection.terminate()
                    connection = None
                if time.monotonic() - renewed > self._lease_seconds:
                    for run_id, epoch in owned.items():
                        self._tell(self._executor.let_go, run_id, epoch)
            await asyncio.to_thread(self._stopping.wait, min(_LOOK_EVERY, self._renew_seconds))
        if connection is not None:
            try:
                await connection.close()
            except UNAVAILABLE:
                connection.terminate()

    async def _renew(self, leases: Leases, owned: dict[str, int]) -> None:
        figures = asdict(self._executor.figures) | {"journal": asdict(self._journal.figures)}
        for name in ("pickup", "first_token"):
            figures[name] = getattr(self._executor.figures, name).shown()
        figures["measures"] = self._measures.shown()
        await leases.beat(
            host=self._host, pid=os.getpid(), slots=self._executor.slots, running=len(owned), figures=figures
        )
        if not owned:
            return
        kept = await leases.renew(owned)
        for run_id, epoch in owned.items():
            if run_id not in kept:
                # Ended just now, or lost: the executor knows which.
                self._tell(self._executor.lose, run_id, epoch)

    async def _look(self, leases: Leases, owned: dict[str, int]) -> None:
        if owned:
            for run_id, asked in (await leases.requests(list(owned))).items():
                self._tell(self._executor.ask, run_id, asked)
        for overdue in await leases.end_overdue(patience=_OWNERS_PATIENCE):
            log.warning("run_ended_for_its_owner", run_id=overdue.run_id, status=overdue.status)
            self._tell(self._publisher.nudge, overdue.org_id, overdue.session_id)
            if overdue.next_run is not None:
                self._tell(self._executor.woken)

    async def _settle(self, connection: Any) -> None:
        for due in await resolve_due(connection):
            log.info("approval_due", run_id=due.run_id, approval_id=due.approval_id, outcome=due.outcome)
            self._tell(self._publisher.nudge, due.org_id, due.session_id)
            if due.claimable:
                self._tell(self._executor.woken)

    async def _watch(self, leases: Leases, begun: float) -> None:
        silent = self._renew_seconds + _LATE
        missing = await leases.missing(silent_seconds=silent)
        if suspects := self._vigil.looked(begun, time.monotonic(), missing):
            dead, runs = await leases.bury(suspects, silent_seconds=silent, settle_seconds=SETTLE_SECONDS)
            if dead:
                log.warning("workers_died", workers=dead, runs=runs)
                self._tell(self._executor.look)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        assert self._main is not None
        self._main.call_soon_threadsafe(what, *arguments)
