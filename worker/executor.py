"""The executor: a fixed number of slots, each holding one run.

It claims when it is woken and has a free slot, and as many runs at once as it was woken for. A run's slot is free
again when its end is in Postgres. Draining, it claims nothing more, and hands back what does not finish in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from kernel.journal import Journal
from kernel.leases import Asked, ClaimedRun, Leases
from kernel.postgres import STORE_ERRORS
from orchestrator.engine import Engine
from worker.charges import Charges
from worker.execution import Execution
from worker.figures import Figures
from worker.vigil import Vigil

log = structlog.get_logger(__name__)


class Executor:
    """`run()` is its task; it ends when `drain()` was called. `stuck` are runs whose code did not end when told to."""

    def __init__(
        self,
        *,
        leases: Leases,
        journal: Journal,
        engine: Engine,
        charges: Charges,
        vigil: Vigil,
        slots: int,
        ring: Callable[[int], Awaitable[None]],
        after: Callable[[ClaimedRun], Awaitable[None]] | None = None,
    ) -> None:
        self._leases = leases
        self._journal = journal
        self._engine = engine
        self._charges = charges
        self._vigil = vigil
        self._ring = ring
        self._after = after
        self.slots = slots
        self.running: dict[str, Execution] = {}
        self.stuck: list[str] = []
        self.figures = Figures()
        self._tasks: dict[asyncio.Task[None], Execution] = {}
        self._tokens = 0
        self._behind = False
        self._wake = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._draining = False
        self._claiming = asyncio.Lock()

    # -- what others tell it -------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that are free and not yet spoken for by a bell."""
        return self.slots - len(self.running) - self._tokens

    def woken(self, times: int = 1) -> None:
        """A bell for each of so many runs."""
        self._tokens = min(self._tokens + times, self.slots)
        self._wake.set()

    def look(self) -> None:
        """There may be any number of runs that no bell told of."""
        self._behind = True
        self.woken()

    async def until_free(self) -> None:
        """Returns when a bell would find a free slot."""
        while self.free <= 0:
            self._slot_freed.clear()
            await self._slot_freed.wait()

    def ask(self, run_id: str, what: Asked) -> None:
        """Passes on what a caller wants of a run of ours; others are none of our business."""
        if execution := self.running.get(run_id):
            if what == "cancelled":
                execution.cancel()
            else:
                execution.pause()

    def lose(self, run_id: str, epoch: int) -> None:
        """The lease is gone: stops the run at once, leaving it as it is."""
        execution = self.running.get(run_id)
        if execution is not None and execution.run.epoch == epoch:
            execution.lose()

    def let_go(self, run_id: str, epoch: int) -> None:
        """The lease may be gone, for Postgres could not be reached: stops the run at once, and hands it back later."""
        execution = self.running.get(run_id)
        if execution is not None and execution.run.epoch == epoch:
            execution.let_go()

    def owned(self) -> dict[str, int]:
        """The runs in execution with their epochs."""
        return {run_id: execution.run.epoch for run_id, execution in list(self.running.items())}

    # -- its life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claims and executes until drained."""
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            while self._tokens and not self._draining:
                room = self.slots - len(self.running)
                if room <= 0:
                    self._behind = True
                    break
                # Behind, bells are no measure any more: it takes what fits, until there is nothing left.
                wanted = room if self._behind else min(room, self._tokens)
                self._tokens = max(0, self._tokens - wanted)
                found = await self._claim_and_start(wanted)
                if found < wanted:
                    self._behind = False
                elif self._behind:
                    self._tokens = max(self._tokens, 1)
                self._slot_freed.set()

    async def drain(self, grace: float, effect_grace: float) -> None:
        """Stops claiming and hands runs back, uncharged: each after its present step or after `grace` seconds, but
        one in the midst of a call that must not be repeated only after another `effect_grace` seconds."""
        self._draining = True
        self._wake.set()
        async with self._claiming:  # what is just being claimed is ours to hand back, too
            pass
        for execution in self.running.values():
            execution.drain()
        await self._all_free(grace)
        for execution in self.running.values():
            if execution.brake.quiet:
                execution.cut()
        if busy := [task for task, execution in self._tasks.items() if not execution.brake.quiet]:
            await asyncio.wait(busy, timeout=effect_grace)
        for execution in self.running.values():
            execution.cut()
        await self._all_free(3.0)

    async def abandon(self) -> None:
        """Gives up what still runs when the worker breaks down: its leases run out, and others go on with it."""
        tasks = list(self._tasks)
        for execution in self.running.values():
            execution.lose()
        await self._all_free(2.0)
        for task in tasks:  # waits for a commit that nobody makes any more
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_free(self, patience: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)

    async def _claim_and_start(self, limit: int) -> int:
        async with self._claiming:
            if self._draining:
                return 0
            try:
                claimed = await self._leases.claim(
                    limit,
                    running=list(self.running),
                    take_over=self._vigil.calm(time.monotonic()),
                    take_suspect=not any(execution.suspect for execution in self.running.values()),
                )
            except STORE_ERRORS as error:
                log.warning("claim_failed", error=repr(error), effect="tried again within a second")
                return 0
            for run in claimed:
                self._start(run)
            return len(claimed)

    def _start(self, run: ClaimedRun) -> None:
        self.figures.claimed += 1
        if run.epoch == 1:
            self.figures.pickup.observe(run.pickup_seconds)
        self.running[run.id] = execution = Execution(
            run,
            journal=self._journal,
            engine=self._engine,
            leases=self._leases,
            figures=self.figures,
            ring=self._ring,
            after=self._after,
        )
        task = asyncio.create_task(self._occupy(execution), name=f"slot of {run.id}")
        self._tasks[task] = execution
        task.add_done_callback(self._tasks.pop)

    async def _occupy(self, execution: Execution) -> None:
        run = execution.run
        structlog.contextvars.bind_contextvars(run_id=run.id, session_id=run.session_id)
        self._charges.begin(run, execution.used)
        try:
            await execution.carry_out()
        finally:
            self._charges.end(run)
            if self.running.get(run.id) is execution:
                del self.running[run.id]
            if execution.stuck:
                self.stuck.append(run.id)
                self.figures.stuck += 1
            self._slot_freed.set()
            if run.capped:  # its place under the cap is free again, and no bell says so
                self.look()
            elif self._tokens:
                self._wake.set()
