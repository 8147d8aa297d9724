"""Durable runs per second: submitted over HTTP and followed to `done`, through graph, journal and fan-out, no model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import asyncpg

from bench.http import BenchFailed, Connection
from bench.report import Bound, Line, Section
from bench.stats import Spread, latency, rate
from bench.subject import Subject

KEY = "runs"
TITLE = "Durable runs without a model"

_ROUNDS = 4
_RUNS = 300
_CONNECTIONS = 32
_COMMITS = 1500
_WRITERS = 10


async def measure(subject: Subject) -> list[Section]:
    """Rounds of runs over keep-alive connections, each with one run at a time."""
    connections = [await subject.api.connect() for _ in range(_CONNECTIONS)]
    request = subject.api.request("POST", "/v1/runs", {"input": "there and back", "workflow": "echo"}, stream=True)
    await _round(connections, request, _CONNECTIONS * 3)
    rates, times = [], []
    cores = subject.processor_time()
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        times += await _round(connections, request, _RUNS)
        rates.append(_RUNS / (time.perf_counter() - began))
    notes = cores.notes()
    for connection in connections:
        connection.close()
    return [
        Section(
            KEY,
            f"{TITLE} ({_ROUNDS} rounds of {_RUNS}, {_CONNECTIONS} at once)",
            [
                Line("submitted over HTTP and followed to done", "/s", rate(rates), Bound(150, at_least=True)),
                Line("POST to done of each", "ms", latency(times)),
                Line(f"single rows committed by {_WRITERS} writers", "/s", await _commits(subject), single=True),
            ],
            notes,
        )
    ]


async def _round(connections: list[Connection], request: bytes, runs: int) -> list[float]:
    left = iter(range(runs))
    async with asyncio.TaskGroup() as tasks:
        ours = [tasks.create_task(_submit(connection, request, left)) for connection in connections]
    return [seconds for task in ours for seconds in task.result()]


async def _submit(connection: Connection, request: bytes, left: Iterator[int]) -> list[float]:
    times = []
    for _ in left:
        run = await connection.call(request)
        times.append((run.ended - run.sent) * 1e3)
        if run.body.count(b"event: done\n") != 1 or b'"status":"succeeded"' not in run.body:
            raise BenchFailed(f"a run did not succeed; its stream ends with {bytes(run.body[-500:])!r}")
    return times


async def _commits(subject: Subject) -> Spread:
    """What Postgres alone commits in a second when several write: a run takes at least two commits."""
    pool = await asyncpg.create_pool(subject.database_url, min_size=_WRITERS, max_size=_WRITERS)
    left = iter(range(_COMMITS))

    async def write() -> None:
        async with pool.acquire() as connection:
            insert = await connection.prepare("INSERT INTO bench.rows (body) VALUES ($1)")
            for _ in left:
                await insert.fetch("x" * 200)

    async with pool:
        await pool.execute("CREATE SCHEMA bench CREATE TABLE rows (id bigserial PRIMARY KEY, body text)")
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WRITERS):
                tasks.create_task(write())
        elapsed = time.perf_counter() - began
        await pool.execute("DROP SCHEMA bench CASCADE")
    return Spread(_COMMITS / elapsed, _COMMITS / elapsed)
