"""A worker's writing side without a worker: claims, pens, one journal writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from redis.asyncio import Redis

from kernel.checkpoints import CheckpointRow
from kernel.fanout import Publisher
from kernel.journal import SQL, Journal
from kernel.leases import ClaimedRun, Leases
from kernel.postgres import Pool
from kernel.runlog import End, Owner, RunLog
from kernel.runs import IfBusy, InputMessage, NewRun, Run, submit

FINISHED = End("succeeded", "stop", {"input_tokens": 0, "output_tokens": 0, "cost": 0.0}, None)


async def ask(
    database: Pool, org: str, *, session_id: str | None = None, if_busy: IfBusy = "enqueue", text: str = "hello"
) -> Run:
    """Takes a run in."""
    new = NewRun([InputMessage("user", text)], if_busy=if_busy)
    return (await submit(database, org_id=org, user_id=None, session_id=session_id, new=new)).run


def worker(database: Pool, name: str = "host:1", *, lease: float = 10.0) -> Leases:
    """The leases of a worker of this name."""
    return Leases(database, worker=name, lease_seconds=lease)


async def expire(database: Pool, run_id: str) -> None:
    """Makes the run's lease run out, as if its worker had been silent for so long."""
    await database.execute("UPDATE runs SET lease_until = clock_timestamp() - interval '1 s' WHERE id = $1", run_id)


@dataclass(slots=True)
class Writer:
    """A journal that is being written, and a count of the first chunks and lost runs it has told of."""

    journal: Journal
    publisher: Publisher
    next_runs: int = 0
    lost: int = 0

    def pen(self, run: ClaimedRun) -> RunLog:
        """A pen for a claimed run."""
        owner = Owner(run.org_id, run.session_id, run.id, run.epoch, run.turn)
        return self.journal.open(owner, on_lost=self._count_lost, on_first_chunk=lambda: None)

    def _count_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def writing(database: Pool, redis: Redis) -> AsyncIterator[Writer]:
    """A journal and a publisher at work, brought to their end in order when the block ends."""
    publisher = Publisher(redis)

    def count_next() -> None:
        writer.next_runs += 1

    writer = Writer(Journal(database, publisher, on_next_run=count_next), publisher)
    tasks = [asyncio.create_task(publisher.run()), asyncio.create_task(writer.journal.run())]
    try:
        yield writer
        writer.journal.close()
        await tasks[1]
        publisher.close()
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()


async def commit(
    database: Pool, run_id: str, session_id: str, epoch: int, batch: int, events: list[tuple[str, str]]
) -> asyncpg.Record:
    """Commits one slice of events, (type, data) each, without publishing them."""
    count = len(events)
    places = list(range(1, count + 1))
    rows = await database.fetch(
        SQL.commit,
        *([run_id], [session_id], [epoch], [batch], [count]),
        *([1] * count, places, [type for type, _ in events], [data for _, data in events]),
        *([None] * 6),
        *([[]] * 8),
        *([[]] * 10),
    )
    return rows[0]


async def log_of(database: Pool, session_id: str) -> list[tuple[int, str, str]]:
    """The session's log as (seq, type, data)."""
    rows = await database.fetch("SELECT seq, type, data FROM events WHERE session_id = $1 ORDER BY seq", session_id)
    return [(row["seq"], row["type"], row["data"]) for row in rows]


def checkpoint(thread_id: str, number: int = 1) -> CheckpointRow:
    """A state of a thread, as small as can be."""
    return CheckpointRow(thread_id, "", f"c{number}", None, "msgpack", b"state", b"metadata")
