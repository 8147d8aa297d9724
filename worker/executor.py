"""The executor: a fixed number of slots, each holding one run.

It claims when it is woken and has a free slot, and as many runs at once as it was woken for. A run's slot is free
again when its end is in Postgres. Draining, it claims nothing more, and hands back what does not finish in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import structlog

from kernel.errors import LeaseLost, StoreUnavailable
from kernel.journal import Journal
from kernel.leases import ClaimedRun, Leases
from kernel.postgres import STORE_ERRORS, UNAVAILABLE
from kernel.runlog import End, Owner, RunLog
from orchestrator.engine import Engine
from worker.figures import Figures

log = structlog.get_logger(__name__)

MOST_ATTEMPTS = 3
"""A run whose worker died this often is parked: it would kill the next one too."""

Stop = Literal["cancelled", "lost", "drained"]


@dataclass(slots=True)
class Slot:
    """One run in execution. `stop` says why its task was cancelled, if it was."""

    run: ClaimedRun
    task: asyncio.Task[None] = field(init=False)
    begun: bool = False
    stop: Stop | None = None

    def halt(self, why: Stop) -> None:
        """Stops the run; only the first reason counts. A task that was cancelled before its first step would
        never run its own clean-up, so one that has not begun looks at `stop` by itself."""
        if self.stop is None:
            self.stop = why
            if self.begun:
                self.task.cancel()


class Executor:
    """`run()` is its task; it ends when `drain()` was called and all slots are free."""

    def __init__(
        self, *, leases: Leases, journal: Journal, engine: Engine, slots: int, ring: Callable[[int], Awaitable[None]]
    ) -> None:
        self._leases = leases
        self._journal = journal
        self._engine = engine
        self._ring = ring
        self.slots = slots
        self.running: dict[str, Slot] = {}
        self.figures = Figures()
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

    def cancel(self, run_id: str) -> None:
        """Cancels a run of ours on its caller's behalf; others are none of our business."""
        if slot := self.running.get(run_id):
            slot.halt("cancelled")

    def lose(self, run_id: str, epoch: int) -> None:
        """The lease is gone: stops the run at once, leaving it as it is."""
        slot = self.running.get(run_id)
        if slot is not None and slot.run.epoch == epoch:
            slot.halt("lost")

    def owned(self) -> dict[str, int]:
        """The runs in execution with their epochs."""
        return {run_id: slot.run.epoch for run_id, slot in list(self.running.items())}

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

    async def drain(self, grace: float) -> None:
        """Stops claiming, gives runs `grace` seconds to finish, hands the rest back uncharged."""
        self._draining = True
        self._wake.set()
        async with self._claiming:  # what is just being claimed is ours to hand back, too
            pass
        await self._all_free(grace)
        left = self.owned()
        for slot in list(self.running.values()):
            slot.halt("drained")
        await self._all_free(5.0)
        await self._hand_back(left)

    async def abandon(self) -> None:
        """Cancels what still runs when the worker breaks down: its leases run out, and others go on with it."""
        tasks = [slot.task for slot in self.running.values()]
        for slot in list(self.running.values()):
            slot.halt("lost")
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hand_back(self, owned: dict[str, int]) -> None:
        if not owned:
            return
        try:
            handed = await self._leases.hand_back(owned)
        except STORE_ERRORS as error:
            log.warning("hand_back_failed", error=repr(error), runs=len(owned), effect="their leases run out instead")
            return
        log.info("runs_handed_back", runs=len(handed))
        if handed:
            await self._ring(len(handed))

    async def _all_free(self, patience: float) -> None:
        tasks = [slot.task for slot in self.running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=patience)

    async def _claim_and_start(self, limit: int) -> int:
        async with self._claiming:
            if self._draining:
                return 0
            try:
                claimed = await self._leases.claim(limit, running=list(self.running))
            except STORE_ERRORS as error:
                log.warning("claim_failed", error=repr(error), effect="tried again within a second")
                return 0
            for run in claimed:
                self._start(run)
            return len(claimed)

    def _start(self, run: ClaimedRun) -> None:
        slot = Slot(run)
        self.running[run.id] = slot
        self.figures.claimed += 1
        if run.epoch == 1:
            self.figures.pickup.observe(run.pickup_seconds)
        slot.task = asyncio.create_task(self._execute(slot), name=run.id)
        if run.cancelled:
            slot.halt("cancelled")

    async def _execute(self, slot: Slot) -> None:
        run = slot.run
        started = time.monotonic()
        pen = self._journal.open(
            Owner(run.org_id, run.session_id, run.id, run.epoch, run.turn),
            on_lost=lambda: slot.halt("lost"),
            on_first_chunk=lambda: self.figures.first_token.observe(run.pickup_seconds + time.monotonic() - started),
        )
        structlog.contextvars.bind_contextvars(run_id=run.id, session_id=run.session_id)
        try:
            await self._work(slot, pen)
        except LeaseLost:
            self.figures.lost += 1
        except (StoreUnavailable, *UNAVAILABLE) as error:
            log.warning("run_interrupted", error=repr(error), effect="handed back, goes on from its last checkpoint")
            await self._hand_back({run.id: run.epoch})
        except Exception:  # whatever it is concerns this run alone; after three attempts it is parked
            log.exception("run_broke")
        finally:
            if self.running.get(run.id) is slot:
                del self.running[run.id]
            self._slot_freed.set()
            if self._tokens:
                self._wake.set()

    async def _work(self, slot: Slot, pen: RunLog) -> None:
        """Executes the run; ends it where the engine could not because it was cancelled."""
        run = slot.run
        try:
            if run.epoch > 1:
                run, unfinished = await self._leases.take_over(run)
                pen.take_over(unfinished, run.input_tokens, run.output_tokens)
            slot.begun = True
            self._announce(run, pen)
            if slot.stop is not None:
                raise asyncio.CancelledError
            if run.attempt > MOST_ATTEMPTS:
                _park(pen)
            else:
                await self._engine.execute(run, pen)
            await pen.committed()
        except asyncio.CancelledError:
            match slot.stop:
                case "cancelled" if not pen.ended:
                    pen.end(End("cancelled", "cancelled", pen.usage(), None))
                    await pen.committed()
                case "cancelled":
                    await pen.committed()
                case "lost":
                    log.warning("run_lost", run_id=run.id, epoch=run.epoch)
                    self.figures.lost += 1
                case "drained":
                    pass
                case None:
                    raise

    def _announce(self, run: ClaimedRun, pen: RunLog) -> None:
        about = {"attempt": run.attempt, "worker": self._leases.worker}
        if not run.announced:
            version = {"agent_id": run.agent_id, "agent_version": run.agent_version}
            pen.say("run_started", about | version, urgent=False)
        else:
            self.figures.resumed += 1
            pen.say("run_resumed", about | {"reason": "its worker stopped"})


def _park(pen: RunLog) -> None:
    error = {
        "code": "poisoned",
        "message": f"The worker of this run died {MOST_ATTEMPTS} times, so it is not tried again.",
        "retryable": False,
        "suggestions": ["look into the workers' logs for this run id", "send the request again once that is mended"],
    }
    pen.say("error", error, urgent=False)
    pen.end(End("failed", "poisoned", pen.usage(), error))
