"""What must be true of runs, sessions and leases, in plain Python: a model small enough to be read at one go.

It knows nothing of Postgres. `test_run_machine.py` does the same to the model and to the database, and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["committed", "repeated", "refused"]

ENDS = ("succeeded", "failed", "cancelled", "expired")


@dataclass(slots=True)
class Said:
    """A batch of a run's owner: its events by type, and what they mean."""

    events: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    """Messages whose first chunks these are."""
    dropped: list[str] = field(default_factory=list)
    """Messages that are discarded."""
    tokens: int = 0
    steps: int = 0
    call: bool | None = None
    """A call was let loose (True) or has an outcome (False)."""
    asked: list[str] = field(default_factory=list)
    """Approvals that are asked for."""
    end: str | None = None
    rest: Literal["paused", "approval"] | None = None
    waits_for: list[str] = field(default_factory=list)
    """Approvals that the owner does not know the outcome of when it leaves the run at rest."""


@dataclass(slots=True, eq=False)
class Run:
    """One run. `owner` is the worker whose lease it is under; `lapsed` says that the lease has run out."""

    id: str
    session: Session
    status: str = "queued"
    owner: str | None = None
    epoch: int = 0
    attempt: int = 0
    deaths: int = 0
    left: str | None = None
    lapsed: bool = False
    overdue: bool = False
    cancel_asked: bool = False
    pause_asked: bool = False
    stepped: bool = False
    """Its present owner has finished a step."""
    steps: int = 0
    announced: bool = False
    streaming: list[str] = field(default_factory=list)
    """Messages that were begun and neither completed nor discarded."""
    tokens: int = 0
    calls: int = 0
    open_call: bool = False
    open_approvals: list[str] = field(default_factory=list)
    last_words: tuple[int, int] | None = None
    """The epoch and number of the batch with which its last owner ended it or left it at rest."""

    @property
    def finished(self) -> bool:
        return self.status in ENDS

    @property
    def head(self) -> bool:
        return self.session.head is self

    @property
    def claimable(self) -> bool:
        if self.status == "running":
            return self.lapsed
        return self.status == "queued" and self.head and not self.pause_asked and not self.overdue

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills its owners: then it may be held back for a while."""
        return self.deaths > 0 and not self.stepped


@dataclass(slots=True, eq=False)
class Session:
    """A session: its runs in turn, its log, and the fence: who may write, and how many batches it has written."""

    id: str
    runs: list[Run] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    """(run id, event type)"""
    epoch: int = 0
    batch: int = 0

    @property
    def head(self) -> Run | None:
        return next((run for run in self.runs if not run.finished), None)


@dataclass(slots=True)
class Model:
    """All sessions there are."""

    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def runs(self) -> Iterator[Run]:
        return (run for session in self.sessions.values() for run in session.runs)

    def run(self, run_id: str) -> Run:
        return next(run for run in self.runs if run.id == run_id)

    # -- callers -------------------------------------------------------------------------------------------

    def submit(self, run_id: str, session_id: str) -> Run:
        session = self.sessions.setdefault(session_id, Session(session_id))
        run = Run(run_id, session)
        session.runs.append(run)
        session.log.append((run_id, "run_queued"))
        return run

    def interrupt(self, session: Session) -> list[Run]:
        """For a new run: ends what nobody runs and asks the rest to end, the latest first; those that were asked."""
        unfinished = [run for run in reversed(session.runs) if not run.finished]
        return [run for run in unfinished if self.cancel(run) == "requested"]

    def cancel(self, run: Run) -> str:
        if run.finished:
            return "finished"
        if run.status == "running" and not run.lapsed:
            run.cancel_asked = True
            return "requested"
        self.end_from_outside(run, "cancelled")
        return "cancelled"

    def pause(self, run: Run) -> str:
        if run.finished:
            return "finished"
        run.pause_asked = True
        return {"running": "requested", "waiting": "waiting", "queued": "held"}[run.status]

    def resume(self, run: Run) -> str:
        if run.finished or not run.pause_asked:
            return "finished" if run.finished else "unchanged"
        run.pause_asked = False
        if run.status == "waiting" and run.left == "approval":
            return "undecided"
        if run.status == "waiting":
            run.status = "queued"
        return "running" if run.status == "running" else "resumed"

    def decide(self, run: Run, approval_id: str) -> bool:
        """Whether the run can be claimed by that."""
        run.open_approvals.remove(approval_id)
        run.session.log.append((run.id, "approval_resolved"))
        if run.status != "waiting" or run.left != "approval":
            return False
        if run.pause_asked:
            run.left = "paused"
        else:
            run.status = "queued"
        return run.status == "queued"

    # -- workers -------------------------------------------------------------------------------------------

    def claimable(self, mine: set[str]) -> tuple[list[Run], list[Run]]:
        """What a worker that has `mine` may claim: runs of dead owners, which go first, and queued ones."""
        dead = [run for run in self.runs if run.claimable and run.status == "running" and run.id not in mine]
        return dead, [run for run in self.runs if run.claimable and run.status == "queued"]

    def claim(self, run: Run, worker: str) -> str | None:
        """The run gets a new owner; says why the last one is gone."""
        died = run.status == "running"
        if died:
            run.deaths = 1 if run.stepped else run.deaths + 1
        left_by = "died" if died else run.left
        run.attempt += run.left is None
        run.epoch += 1
        run.status, run.owner, run.lapsed, run.left, run.stepped = "running", worker, False, None, False
        run.last_words = None
        run.session.epoch, run.session.batch = run.epoch, 0
        return left_by

    def owned(self, run: Run, epoch: int) -> bool:
        return run.status == "running" and run.epoch == epoch

    def renew(self, run: Run, epoch: int) -> bool:
        if self.owned(run, epoch):
            run.lapsed = False
            return True
        return False

    def hand_back(self, run: Run, epoch: int, because: str) -> bool:
        if not self.owned(run, epoch):
            return False
        self._disown(run, "queued")
        run.left = because
        return True

    def judge(self, run: Run, epoch: int, batch: int) -> Outcome:
        """What becomes of a batch of this number from an owner of this epoch."""
        session = run.session
        if session.head is run and session.epoch == epoch:
            if batch == session.batch + 1:
                return "committed"
            if batch == session.batch:
                return "repeated"
        return "repeated" if run.last_words == (epoch, batch) else "refused"

    def commit(self, run: Run, epoch: int, batch: int, said: Said) -> Outcome:
        outcome = self.judge(run, epoch, batch)
        if outcome != "committed":
            return outcome
        run.session.batch = batch
        run.session.log += [(run.id, type) for type in said.events]
        run.streaming = [id for id in (*run.streaming, *said.begun) if id not in said.dropped]
        run.tokens += said.tokens
        run.stepped |= said.steps > 0
        run.steps += said.steps
        run.announced |= bool({"run_started", "run_resumed"} & set(said.events))
        if said.call is not None:
            run.open_call = said.call
            run.calls += said.call
        run.open_approvals += said.asked
        if said.end is not None or said.rest is not None:
            run.last_words = (epoch, batch)
        if said.end is not None:
            self._end(run, said.end)
        elif said.rest is not None:
            undecided = (
                said.rest == "approval" and bool(said.waits_for) and set(said.waits_for) <= {*run.open_approvals}
            )
            waits = (undecided or run.pause_asked) and not run.cancel_asked
            self._disown(run, "waiting" if waits else "queued")
            run.left = said.rest if undecided or not run.pause_asked else "paused"
        return outcome

    # -- time ----------------------------------------------------------------------------------------------

    def overdue(self) -> dict[str, str]:
        """Runs that are ended from outside if nobody waits any longer: id to status."""
        return {
            run.id: "cancelled" if run.cancel_asked else "expired"
            for run in self.runs
            if not run.finished and (run.overdue or run.cancel_asked)
        }

    def end_from_outside(self, run: Run, status: str) -> None:
        events = ["message_discarded"] * len(run.streaming) + ["tool_result"] * run.open_call
        events += ["error"] * (status == "expired") + ["done"]
        run.session.log += [(run.id, type) for type in events]
        self._end(run, status)

    def _end(self, run: Run, status: str) -> None:
        was_head = run.head
        run.status, run.owner, run.lapsed = status, None, False
        run.streaming, run.open_call, run.open_approvals = [], False, []
        if was_head:
            run.session.epoch = run.session.batch = 0

    def _disown(self, run: Run, status: str) -> None:
        run.status, run.owner, run.lapsed = status, None, False
        run.session.epoch = run.session.batch = 0
