"""The journal: every session's ordered log, written by one writer per worker.

Group commit: the writer takes what all runs have pending and commits it in one call, while the next batch
gathers. Idle, it commits at once; busy, its batches grow. Events are published only after they are committed.

A commit whose outcome is unknown, because the connection broke, is sent again: batches are numbered within an
epoch, and Postgres takes each number once. A run whose epoch is over loses everything it still wanted to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import structlog

from kernel.events import encode_json, render_frame, render_time
from kernel.fanout import Publisher
from kernel.postgres import STORE_ERRORS, UNAVAILABLE, Pool, patiently
from kernel.runlog import Batch, Owner, RunLog
from kernel.sql import statements

SQL = statements(__package__, "journal.sql")
log = structlog.get_logger(__name__)

_RETRY = (*UNAVAILABLE, asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.QueryCanceledError)

# How long an event that is not urgent waits for one that is. Long enough for a first token that comes at once,
# too short to notice in one that does not.
_SOON = 0.02

# How long a process that is to end tries to reach Postgres.
_FAREWELL_SECONDS = 2.0

_UNSTORABLE = {
    "code": "unstorable",
    "message": "The run produced something that can't be stored.",
    "retryable": False,
    "suggestions": ["the operator's log has the reason under this run's id"],
}


@dataclass(frozen=True, slots=True)
class _Slice:
    """One run's part of a commit."""

    run: RunLog
    batch: Batch
    waiters: list[asyncio.Future[None]]
    number: int


@dataclass(slots=True)
class JournalFigures:
    """What the writer has done since it started."""

    commits: int = 0
    slices: int = 0
    events: int = 0
    seconds: float = 0.0


class Journal:
    """One worker's writer. `run()` is its task; it ends after `close()` when all is written."""

    def __init__(self, db: Pool, publisher: Publisher, *, on_next_run: Callable[[], None]) -> None:
        self._db = db
        self._publisher = publisher
        self._on_next_run = on_next_run
        self._due: set[RunLog] = set()
        self._soon: set[RunLog] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self.figures = JournalFigures()

    def open(self, owner: Owner, *, on_lost: Callable[[], None], on_first_chunk: Callable[[], None]) -> RunLog:
        """A pen for a run this worker has just claimed. `on_lost` is called when its epoch turns out to be over."""
        return RunLog(
            owner, wake=self._is_due, wake_soon=self._is_due_soon, on_lost=on_lost, on_first_chunk=on_first_chunk
        )

    def close(self) -> None:
        """Lets `run()` end once nothing is pending."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Writes until closed. Must be owned by a task that notices its end."""
        while not (self._closing and not self._due):
            await self._wake.wait()
            self._wake.clear()
            if self._due:
                await self._commit(self._take())

    def _is_due(self, run: RunLog) -> None:
        if not run.lost:
            self._due.add(run)
            self._wake.set()

    def _is_due_soon(self, run: RunLog) -> None:
        if not self._soon:
            asyncio.get_running_loop().call_later(_SOON, self._soon_is_now)
        self._soon.add(run)

    def _soon_is_now(self) -> None:
        soon, self._soon = self._soon, set()
        for run in soon:
            self._is_due(run)

    def _take(self) -> list[_Slice]:
        due, self._due = self._due, set()
        slices = []
        for run in sorted(due, key=lambda run: run.owner.session_id):
            batch, waiters = run.take()
            if batch.empty:
                _resolve(waiters)
            else:
                run.batches += 1
                slices.append(_Slice(run, batch, waiters, run.batches))
        return slices

    async def _commit(self, slices: list[_Slice]) -> None:
        if not slices:
            return
        started = time.perf_counter()
        pause = 0.05
        while True:
            try:
                rows = await self._db.fetch(SQL.commit, *_arguments(slices))
                break
            except _RETRY as error:
                if isinstance(error, ValueError):  # asyncpg can't encode it: no use in trying again
                    await self._commit_singly(slices)
                    return
                log.warning("journal_commit_failed", error=repr(error), runs=len(slices), retry_in=pause)
                if self._closing and time.perf_counter() - started > _FAREWELL_SECONDS:
                    for piece in slices:  # Postgres is away, and this process is to end
                        piece.run.lose(piece.waiters)
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
            except Exception:  # the writer serves all runs: nothing that one of them says may end it
                await self._commit_singly(slices)
                return
        self.figures.commits += 1
        self.figures.slices += len(slices)
        self.figures.events += sum(len(piece.batch.events) for piece in slices)
        self.figures.seconds += time.perf_counter() - started
        for piece, row in zip(slices, rows, strict=True):
            self._settle(piece, row)

    async def _commit_singly(self, slices: list[_Slice]) -> None:
        """One run's data can't be stored, and the others must not suffer: each goes alone."""
        if len(slices) > 1:
            for piece in slices:
                await self._commit([piece])
            return
        [piece] = slices
        owner = piece.run.owner
        log.exception("journal_could_not_store", run_id=owner.run_id)
        piece.run.lose(piece.waiters)
        # The run ends here, saying why; on another worker it would only end the same way. Its log as it stands tells
        # what was begun and used, for this batch counts for nothing.
        try:
            row = await patiently(
                lambda: self._db.fetchrow(
                    SQL.end_unstorable, owner.run_id, owner.session_id, owner.epoch, encode_json(_UNSTORABLE)
                )
            )
        except STORE_ERRORS as error:
            log.warning("unstorable_run_not_ended", run_id=owner.run_id, error=repr(error), effect="it is tried again")
            return
        self._publisher.nudge(owner.org_id, owner.session_id)
        if row is not None and row["next_run"] is not None:
            self._on_next_run()

    def _settle(self, piece: _Slice, row: asyncpg.Record) -> None:
        owner = piece.run.owner
        if row["outcome"] == "refused":
            log.warning("epoch_over", run_id=owner.run_id, epoch=owner.epoch)
            piece.run.lose(piece.waiters)
            return
        if row["outcome"] == "committed" and not piece.batch.approvals:
            self._publish(piece, row["first_seq"], render_time(row["at"]))
        else:  # committed by an earlier try whose answer was lost, or with times that Postgres has filled in
            self._publisher.nudge(owner.org_id, owner.session_id)
        if row["next_run"] is not None:
            self._on_next_run()
        _resolve(piece.waiters)

    def _publish(self, piece: _Slice, first_seq: int, at: str) -> None:
        owner = piece.run.owner
        events = piece.batch.events
        if not events:
            return
        frames = b"".join(
            render_frame(first_seq + place, type, owner.session_id, owner.run_id, at, data)
            for place, (type, data) in enumerate(events)
        )
        self._publisher.publish(
            owner.org_id,
            owner.session_id,
            owner.run_id,
            first=first_seq,
            last=first_seq + len(events) - 1,
            final=piece.batch.end is not None,
            frames=frames,
        )


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _json(rows: list[dict[str, Any]]) -> str | None:
    return encode_json(rows) if rows else None


def _arguments(slices: list[_Slice]) -> tuple[Any, ...]:
    """The parameters of `journal_commit`, in its order."""
    numbered = list(enumerate(slices, start=1))
    events = [
        (number, place, type, data)
        for number, piece in numbered
        for place, (type, data) in enumerate(piece.batch.events, start=1)
    ]
    checkpoints = [(number, row) for number, piece in numbered for row in piece.batch.checkpoints.values()]
    writes = [(number, row) for number, piece in numbered for row in piece.batch.writes]
    messages = [
        f'{{"slice":{number},"turn":{piece.run.owner.turn},{message[1:]}'
        for number, piece in numbered
        for message in piece.batch.messages
    ]
    steps = [{"slice": number, **asdict(step)} for number, piece in numbered for step in piece.batch.steps]
    effects = [
        {"slice": number, **asdict(effect)} for number, piece in numbered for effect in piece.batch.effects.values()
    ]
    approvals = [
        f'{{"slice":{number},"place":{place},{approval[1:]}'
        for number, piece in numbered
        for place, approval in piece.batch.approvals
    ]
    rests = [
        {"slice": number, "because": piece.batch.rest, "open": piece.batch.waits_for}
        for number, piece in numbered
        if piece.batch.rest
    ]
    ends = [{"slice": number, **asdict(piece.batch.end)} for number, piece in numbered if piece.batch.end]
    return (
        [piece.run.owner.run_id for piece in slices],
        [piece.run.owner.session_id for piece in slices],
        [piece.run.owner.epoch for piece in slices],
        [piece.number for piece in slices],
        [len(piece.batch.events) for piece in slices],
        [event[0] for event in events],
        [event[1] for event in events],
        [event[2] for event in events],
        [event[3] for event in events],
        f"[{','.join(messages)}]" if messages else None,
        _json(steps),
        _json(effects),
        f"[{','.join(approvals)}]" if approvals else None,
        _json(rests),
        _json(ends),
        [number for number, _ in checkpoints],
        [row.thread_id for _, row in checkpoints],
        [row.checkpoint_ns for _, row in checkpoints],
        [row.checkpoint_id for _, row in checkpoints],
        [row.parent_id for _, row in checkpoints],
        [row.format for _, row in checkpoints],
        [row.checkpoint for _, row in checkpoints],
        [row.metadata for _, row in checkpoints],
        [number for number, _ in writes],
        [row.thread_id for _, row in writes],
        [row.checkpoint_ns for _, row in writes],
        [row.checkpoint_id for _, row in writes],
        [row.task_id for _, row in writes],
        [row.idx for _, row in writes],
        [row.channel for _, row in writes],
        [row.format for _, row in writes],
        [row.value for _, row in writes],
        [row.task_path for _, row in writes],
    )
