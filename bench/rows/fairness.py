"""How soon an org's run starts while another org has ten thousand queued and every slot is taken."""

from __future__ import annotations

from itertools import pairwise

from bench.crew import until
from bench.queueing import queue_many
from bench.report import Bound, Line, Section
from bench.script import question
from bench.stats import latency
from bench.subject import Subject
from kernel.postgres import Pool, open_pool
from kernel.shares import set_share
from kernel.tenants import ensure_org

KEY = "fairness"
TITLE = "Another org's runs"

_QUEUED = 10_000
_RUNS = 20
_TOKENS = (12, 26, 15, 21, 29, 18, 23)  # so that slots do not come free all at once
_DELAY = 0.02
_CROWD = "bench crowd"
_PATIENCE = 20.0


async def measure(subject: Subject) -> list[Section]:
    """Runs of one org, one after the other, while another's keep the worker busy."""
    pool = await open_pool(subject.database_url, size=2, name="bench")
    connection = await subject.api.connect()
    try:
        crowd = await ensure_org(pool, _CROWD)
        await queue_many(pool, crowd, _QUEUED, texts=[question(0, tokens, _DELAY) for tokens in _TOKENS])

        async def busy() -> bool:
            return bool(await pool.fetchval("SELECT count(*) >= 20 FROM runs WHERE status = 'running'"))

        await until(busy, _PATIENCE, "every slot is taken")
        asked = subject.api.request("POST", "/v1/runs", {"input": "and me?", "workflow": "echo"}, stream=True)
        cores = subject.processor_time()
        waits = []
        for _ in range(_RUNS):
            run = await connection.send(asked, watch=b"event: run_started\n").until("seen")
            waits.append((run.seen - run.sent) * 1e3)
            await run.until("ended")
        notes = cores.notes()
        starts = await pool.fetch("SELECT started_at FROM runs WHERE org_id = $1 AND started_at IS NOT NULL", crowd)
        left = await pool.fetchval("SELECT count(*) FROM runs WHERE org_id = $1 AND status = 'queued'", crowd)
        await _clear(pool, crowd)
    finally:
        connection.close()
        await pool.close()
    moments = sorted(row["started_at"] for row in starts)
    gaps = [(later - earlier).total_seconds() * 1e3 for earlier, later in pairwise(moments)]
    return [
        Section(
            KEY,
            f"{TITLE} ({_RUNS} one after the other, while one org has {left:,} queued and all slots)",
            [
                Line("POST to run_started", "ms", latency(waits), Bound(1000, 1000)),
                Line("between two starts of the other org", "ms", latency(gaps)),
            ],
            notes,
        )
    ]


async def _clear(pool: Pool, crowd: str) -> None:
    """Leaves nothing for the rows that follow to run or to step over."""
    await set_share(pool, _CROWD, max_running=0)

    async def idle() -> bool:
        return bool(await pool.fetchval("SELECT count(*) = 0 FROM runs WHERE status = 'running'"))

    await until(idle, _PATIENCE, "the other org's runs have ended")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE orgs SET default_agent_id = NULL WHERE id = $1", crowd)
        await connection.execute("DELETE FROM orgs WHERE id = $1", crowd)
    await pool.execute("VACUUM runs")
