"""What a second worker adds: runs per second while every slot is filled, with one worker and with two."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import asyncpg

from bench.crew import until
from bench.http import BenchFailed, Connection
from bench.report import Bound, Line, Section
from bench.script import question
from bench.stats import Spread
from bench.subject import Subject

KEY = "scaling"
TITLE = "A second worker"

_SLOTS = 20  # as workers have them by default
_ROUNDS = 4  # of all slots
_TOKENS = (30, 50)
_DELAY = 0.02
_SEED = 1729
_PATIENCE = 20.0


async def measure(subject: Subject) -> list[Section]:
    """The same queue for each slot, once with one worker and once with two."""
    database = await asyncpg.connect(subject.database_url)
    connection = await subject.api.connect()
    second = subject.further_worker(2)
    try:
        await _runs_per_second(subject, connection, database, 1, 1)  # warms up
        cores = subject.processor_time()
        one = await _runs_per_second(subject, connection, database, 1, _ROUNDS)
        notes = [f"one worker: {note}" for note in cores.notes()]
        await second.start()

        async def ready() -> bool:
            return bool(await database.fetchval("SELECT EXISTS (SELECT FROM workers WHERE pid = $1)", second.pid))

        await until(ready, _PATIENCE, "a second worker gets ready")
        await _runs_per_second(subject, connection, database, 2, 1)
        cores = subject.processor_time()
        two = await _runs_per_second(subject, connection, database, 2, _ROUNDS)
        notes += [f"two, the second among the others: {note}" for note in cores.notes()]
    finally:
        await second.stop()
        connection.close()
        await database.close()
    ratio = two / one
    ideal = _SLOTS / (_DELAY * (sum(_TOKENS) / 2 - 1))
    return [
        Section(
            KEY,
            f"{TITLE} ({_SLOTS} slots each, {_TOKENS[0]} to {_TOKENS[1]} tokens {_DELAY * 1e3:g} ms apart)",
            [
                Line("two, compared with one", "×", Spread(ratio, ratio), Bound(1.8, at_least=True), single=True),
                Line("runs per second of one", "/s", Spread(one, one), single=True),
                Line("runs per second of two", "/s", Spread(two, two), single=True),
                Line("of one, if nothing but the model took time", "/s", Spread(ideal, ideal), single=True),
            ],
            notes,
        )
    ]


async def _runs_per_second(
    subject: Subject, connection: Connection, database: asyncpg.Connection[asyncpg.Record], workers: int, rounds: int
) -> float:
    """Takes so many runs in for each slot. Counts from when all slots are filled to when the last run gets one."""
    lengths = random.Random(_SEED)
    slots = workers * _SLOTS
    bodies = [{"input": question(0, lengths.randint(*_TOKENS), _DELAY)} for _ in range(slots * (rounds + 1))]
    ids = await _take_in(subject, connection, bodies)

    async def ended() -> bool:
        return bool(
            await database.fetchval("SELECT count(*) = 0 FROM runs WHERE id = ANY ($1) AND finished_at IS NULL", ids)
        )

    await until(ended, _PATIENCE, "a queue is done")
    rows = await database.fetch("SELECT status, started_at FROM runs WHERE id = ANY ($1) ORDER BY started_at", ids)
    if any(row["status"] != "succeeded" for row in rows):
        raise BenchFailed("a run did not succeed")
    return float((len(rows) - slots) / (rows[-1]["started_at"] - rows[slots - 1]["started_at"]).total_seconds())


async def _take_in(subject: Subject, connection: Connection, bodies: Sequence[dict[str, str]]) -> list[str]:
    ids: list[str] = []
    for place in range(0, len(bodies), 100):
        request = subject.api.request("POST", "/v1/runs/batch", {"runs": bodies[place : place + 100]})
        answer = (await connection.call(request, status=202)).json()
        ids += [result["run"]["id"] for result in answer["results"]]
        await asyncio.sleep(0)
    return ids
