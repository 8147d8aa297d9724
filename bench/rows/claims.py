"""What a claim costs: with one run queued and with ten thousand, with nothing running and with five hundred.

Each case has a database of its own on the stack's server. They take turns, so that whatever else the machine does
slows all of them: what must hold is a ratio.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median

import asyncpg

from bench.http import BenchFailed
from bench.queueing import queue_many
from bench.report import Bound, Line, Section
from bench.stats import Spread, latency
from bench.subject import Subject
from kernel.leases import Leases
from kernel.postgres import Pool, open_pool
from kernel.tenants import ensure_org
from migrations.runner import migrate

KEY = "claims"
TITLE = "A claim"

_QUEUED = 10_000
_RUNNING = 500
_WARM_UP = 30
_ROUNDS = 300
_MOST = Bound(1.2)
_LEASE = 3600.0  # none runs out meanwhile

_USAGE = '{"input_tokens":0,"output_tokens":0,"cost":0.0}'


@dataclass(slots=True)
class Case:
    """One database, and what was measured in it, in ms."""

    pool: Pool
    org: str
    claims: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    async def round(self) -> None:
        """Takes a run in, claims one and ends it."""
        leases = Leases(self.pool, worker="bench:1", lease_seconds=_LEASE)
        began = time.perf_counter()
        await queue_many(self.pool, self.org, 1)
        queued = time.perf_counter()
        claimed = await leases.claim(1)
        ended = time.perf_counter()
        if len(claimed) != 1:
            raise BenchFailed("a claim found nothing")
        await self.pool.execute(
            "SELECT end_run($1, 'succeeded', 'stop', $2, NULL, clock_timestamp())", claimed[0].id, _USAGE
        )
        self.claims.append((ended - queued) * 1e3)
        self.whole.append((time.perf_counter() - began) * 1e3)

    async def fill(self, queued: int, running: int) -> None:
        """Leaves that many runs queued and running."""
        leases = Leases(self.pool, worker="bench:1", lease_seconds=_LEASE)
        if running:
            await queue_many(self.pool, self.org, running)
        while running:
            running -= len(await leases.claim(min(20, running)))
        if queued:
            await queue_many(self.pool, self.org, queued)
        await self.pool.execute("ANALYZE")

    async def floor(self) -> float:
        """A statement that commits one row, in ms."""
        began = time.perf_counter()
        await self.pool.execute("UPDATE lane_clock SET vtime = vtime")
        return (time.perf_counter() - began) * 1e3


async def measure(subject: Subject) -> list[Section]:
    """Each round is a run taken in, claimed and ended, where one to 10,001 are queued."""
    async with AsyncExitStack() as stack:
        few, queued, running = [await _case(subject, name, stack) for name in ("few", "queued", "running")]
        await queued.fill(_QUEUED, 0)
        await running.fill(0, _RUNNING)
        floor = []
        for number in range(_WARM_UP + _ROUNDS):
            for case in (few, queued, running):
                await case.round()
            floor.append(await few.floor())
            if number == _WARM_UP:
                for case in (few, queued, running):
                    case.claims.clear()
                    case.whole.clear()
    return [
        Section(
            KEY,
            f"{TITLE} of one run ({_ROUNDS} in each of three databases, in turns)",
            [
                Line("1 queued, nothing running", "ms", latency(few.claims)),
                _ratio(f"{_QUEUED:,} queued, compared with it", queued.claims, few.claims),
                _ratio(f"{_RUNNING} running, compared with it", running.claims, few.claims),
                _ratio(f"{_QUEUED:,} queued: taking in, claiming and ending", queued.whole, few.whole),
                _ratio(f"{_RUNNING} running: taking in, claiming and ending", running.whole, few.whole),
                Line("a row changed and committed", "ms", latency(floor)),
            ],
        )
    ]


def _ratio(label: str, case: list[float], few: list[float]) -> Line:
    ratio = median(case) / median(few)
    return Line(label, "×", Spread(ratio, ratio), _MOST, single=True)


async def _case(subject: Subject, name: str, stack: AsyncExitStack) -> Case:
    database = f"bench_{name}"
    admin = await asyncpg.connect(subject.database_url)
    try:
        await admin.execute(f"CREATE DATABASE {database}")
    finally:
        await admin.close()
    url = subject.database_url.replace("@/longhaul?", f"@/{database}?")
    await migrate(url)
    pool = await open_pool(url, size=1, name="bench")
    stack.push_async_callback(pool.close)
    return Case(pool, await ensure_org(pool, "bench"))
