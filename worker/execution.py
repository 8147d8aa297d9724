"""The life of one claimed run in a slot: taken over from its last owner, executed, and left in good order.

However it is left, it is left once: ended, resting (paused, or waiting for a decision), handed back to the queue, or
lost to another owner.
User code runs in a task of its own. Told to stop, it is cancelled again and again; what still does not end is left
behind, so that no tool that swallows its cancellation can keep a run or a slot.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import structlog

from kernel.errors import LeaseLost, StoreUnavailable
from kernel.journal import Journal
from kernel.leases import ClaimedRun, HandBack, Leases, LeftBy
from kernel.postgres import STORE_ERRORS, UNAVAILABLE, patiently
from kernel.runlog import End, Owner, RunLog
from kernel.shares import Used
from kernel.tasks import end
from orchestrator.brake import Brake, Braked, Waits
from orchestrator.engine import Engine
from worker.figures import Figures

log = structlog.get_logger(__name__)

MOST_DEATHS: Final = 3
"""A run whose owners died this often in a row, without a finished step between, is suspected to kill them. It is
parked once no other can have been the cause."""

_CANCELS: Final = 3
_CANCEL_AGAIN_AFTER: Final = 0.4

_RESUMED_AFTER: Final[dict[LeftBy | None, str]] = {
    "died": "its worker died",
    "drained": "its worker was told to stop",
    "store_away": "its worker could not reach Postgres",
    "paused": "it was paused",
    "approval": "what it waited for was decided",
    None: "its worker stopped",
}


class Execution:
    """One run in execution. `stuck` says that its code did not end when it was told to; `after` is called with a run
    that it has brought to its end, once that is in Postgres and its followers have it."""

    def __init__(
        self,
        run: ClaimedRun,
        *,
        journal: Journal,
        engine: Engine,
        leases: Leases,
        figures: Figures,
        ring: Callable[[int], Awaitable[None]],
        after: Callable[[ClaimedRun], Awaitable[None]] | None = None,
    ) -> None:
        self._started = started = time.monotonic()
        self._used_before = Used()
        self.run = run
        self.brake = Brake()
        self.stuck = False
        self._engine = engine
        self._leases = leases
        self._figures = figures
        self._ring = ring
        self._after = after
        # A soft stop lets the present step finish, a hard one does not.
        self._soft: Literal["paused", "drained"] | None = None
        self._hard: Literal["cancelled", "lost", "away", "cut"] | None = None
        self._waits = False  # all that it could still do needs a decision
        self._going = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pen = journal.open(
            Owner(run.org_id, run.session_id, run.id, run.epoch, run.turn),
            on_lost=self.lose,
            on_first_chunk=lambda: figures.first_token.observe(run.pickup_seconds + time.monotonic() - started),
        )
        if run.paused:
            self.pause()
        if run.cancelled:
            self.cancel()

    # -- what it is told -----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Its caller wants it to rest after the present step."""
        self._soft = "paused"
        self.brake.pull()

    def drain(self) -> None:
        """Its worker is to go: it is handed back after the present step."""
        if self._soft is None:
            self._soft = "drained"
        self.brake.pull()
        self._going.set()

    def cut(self) -> None:
        """Braked already, it takes too long: the present step is given up, and done again by the next owner."""
        self._halt("cut")

    def cancel(self) -> None:
        """Its caller wants it to end at once."""
        self._halt("cancelled")

    def lose(self) -> None:
        """Its lease is gone: somebody else may have it by now, so it is left as it is."""
        if self._hard != "lost":
            self._hard = "lost"
            self._insist(_CANCELS)

    def let_go(self) -> None:
        """Postgres could not be reached for as long as its lease lasts: somebody else may have it by now. If nobody
        has, it is handed back when Postgres is there again: no owner of it has died."""
        if self._hard not in ("lost", "away"):
            self._hard = "away"
            self._insist(_CANCELS)

    def _halt(self, why: Literal["cancelled", "cut"]) -> None:
        if self._hard is None or (self._hard == "cut" and why == "cancelled"):
            self._hard = why
            self._insist(_CANCELS)

    def _insist(self, times: int) -> None:
        if self._work is None or self._work.done() or self._over.done():
            return
        if times:
            self._work.cancel()
            asyncio.get_running_loop().call_later(_CANCEL_AGAIN_AFTER, self._insist, times - 1)
        else:
            self.stuck = True
            self._over.set_result(None)

    @property
    def suspect(self) -> bool:
        """Whether it may yet turn out to be what killed its last owners."""
        return self.run.deaths >= MOST_DEATHS and not self._pen.stepped

    def used(self) -> Used:
        """What it has used in this slot so far."""
        usage = self._pen.usage()
        seconds = time.monotonic() - self._started
        return Used(seconds, usage["input_tokens"], usage["output_tokens"]) - self._used_before

    # -- its life ------------------------------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Returns when the run is no longer ours. Never raises: whatever happens concerns this run alone."""
        try:
            try:
                await self._live()
                if self._after is not None and self._pen.ended:
                    await self._after(self.run)
            except (StoreUnavailable, *UNAVAILABLE) as error:
                log.warning("run_interrupted", error=repr(error), effect="goes on from its last checkpoint")
                await self._give_back()
        except LeaseLost:
            self._figures.lost += 1
            log.warning("run_lost", run_id=self.run.id, epoch=self.run.epoch)
        except Exception:  # after three attempts it is parked
            log.exception("run_broke")

    async def _live(self) -> None:
        run = self.run
        if run.epoch > 1 or run.retry is not None:
            run, unfinished = await self._leases.take_over(run)
            spent = run.spent_in_all
            effects = run.effects.values()
            self._pen.take_over(unfinished, spent.input_tokens, spent.output_tokens, effects, spent.cost)
            self._used_before = Used(0.0, spent.input_tokens, spent.output_tokens)
        self._announce(run)
        if run.convicted:
            _park(self._pen, run.deaths)
        elif not await self._execute(run):
            await self._leave()
            return
        await self._pen.committed()

    async def _execute(self, run: ClaimedRun) -> bool:
        """Lets the engine bring the run to its end. False if it was stopped short of that."""
        if self._halted():
            return False
        work = self._work = asyncio.create_task(self._engine.execute(run, self._pen, self.brake), name=run.id)
        work.add_done_callback(self._ended)
        await self._over
        if not work.done():
            log.error("run_stuck", effect="left behind; its slot is free, and nothing that it writes is taken")
            return False
        if work.cancelled():
            if not self._halted():
                raise RuntimeError("the run was cancelled by nobody")
            return False
        error = work.exception()
        if isinstance(error, Braked | Waits):
            self._waits = not self.brake.held
            return False
        if error is not None and self._halted() and not isinstance(error, LeaseLost):
            log.warning("run_failed_to_stop_in_order", error=repr(error))
            return False
        if error is not None:
            raise error
        return True

    def _halted(self) -> bool:
        return self._hard is not None

    def _ended(self, work: asyncio.Task[None]) -> None:
        if not self._over.done():
            self._over.set_result(None)
        elif not work.cancelled() and (error := work.exception()) is not None:
            log.warning("stuck_run_ended", error=repr(error))

    async def _leave(self) -> None:
        if self._pen.ended:  # it had come to its end when it was told to stop
            await self._pen.committed()
            return
        match self._hard, self._soft:
            case "lost", _:
                raise LeaseLost(f"run {self.run.id} was given up")
            case "away", _:
                await self._give_back()
            case "cancelled", _:
                self._pen.end(End("cancelled", "cancelled", self._pen.usage(), None))
                await self._pen.committed()
            case None, _ if self._waits:
                self._pen.rest("approval")
                await self._pen.committed()
            case _, "paused":
                self._pen.rest("paused")
                await self._pen.committed()
            case _:
                await self._pen.committed()
                try:
                    await self._hand_back("drained")
                except STORE_ERRORS as error:
                    log.warning("hand_back_failed", error=repr(error), effect="its lease runs out instead")

    async def _give_back(self) -> None:
        """Hands it back when Postgres is there again: no owner of it has died. Until then its slot is of no use to
        anybody, but a worker that is to go does not wait.

        Raises:
            LeaseLost: it was too late for that.
        """

        async def give_back() -> bool:
            await self._pen.committed()
            return await patiently(lambda: self._hand_back("store_away"), patience=math.inf)

        giving = asyncio.create_task(give_back())
        going = asyncio.create_task(self._going.wait())
        try:
            await asyncio.wait((giving, going), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(giving, going)
        if giving.cancelled() or not giving.result():
            raise LeaseLost(f"run {self.run.id} was lost while Postgres could not be reached")

    async def _hand_back(self, because: HandBack) -> bool:
        """Whether it was still ours to hand back."""
        handed = await self._leases.hand_back({self.run.id: self.run.epoch}, because)
        if handed:
            self._figures.handed_back += 1
            log.info("run_handed_back", because=because)
            await self._ring(1)
        return bool(handed)

    def _announce(self, run: ClaimedRun) -> None:
        about = {"attempt": run.attempt, "worker": self._leases.worker}
        if not run.announced:
            version = {"agent_id": run.agent_id, "agent_version": run.agent_version}
            self._pen.say("run_started", about | version, urgent=False)
        else:
            self._figures.resumed += 1
            self._pen.say("run_resumed", about | {"reason": _RESUMED_AFTER[run.left_by]})


def _park(pen: RunLog, deaths: int) -> None:
    error = {
        "code": "poisoned",
        "message": f"The worker of this run died {deaths} times in a row, so it is not tried again.",
        "retryable": False,
        "suggestions": ["look into the workers' logs for this run id", "send the request again once that is mended"],
    }
    pen.say("error", error, urgent=False)
    pen.end(End("failed", "poisoned", pen.usage(), error))
