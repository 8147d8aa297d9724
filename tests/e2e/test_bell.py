"""The bell may be lost or ring too often: every run is executed, and none twice."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from redis.asyncio import Redis

from cli.rehearsal import Reply
from kernel.bell import BELL_KEY, QUEUE_KEY, Bell
from kernel.fanout import Publisher
from kernel.journal import Journal
from kernel.leases import Leases
from kernel.postgres import Pool
from kernel.runs import InputMessage, NewRun, Run, submit
from kernel.settings import Settings
from kernel.tenants import ensure_org
from memory.embedders import choose_embedder
from memory.store import PostgresMemory
from orchestrator.engine import Engine
from orchestrator.kit import Outfitter
from orchestrator.models.factory import Models
from orchestrator.skills.registry import SkillRegistry
from orchestrator.tools.toolbox import Toolbox
from tests.e2e.conftest import OwnStack
from tests.history import assert_history
from tests.scripts import ScriptedModel
from tests.stack import Stack
from tests.waiting import eventually
from worker.charges import Charges
from worker.chores import Chores
from worker.executor import Executor
from worker.retention import Policies, Retention
from worker.vigil import Vigil


async def unheard(database: Pool, *, model: str | None = None) -> Run:
    """Takes a run in without ringing for it."""
    org = await ensure_org(database, f"org {uuid4().hex}")
    new = NewRun(
        [InputMessage("user", "hello")],
        workflow="agent_chat" if model else "echo",
        request={"model": {"name": model}} if model else {},
    )
    return (await submit(database, org_id=org, user_id=None, session_id=None, new=new)).run


async def all_ended(database: Pool) -> bool:
    return not await database.fetchval("SELECT EXISTS (SELECT FROM runs WHERE finished_at IS NULL)")


async def test_a_run_that_no_bell_told_of_starts_by_the_poll(stack: Stack) -> None:
    began = time.monotonic()
    run = await unheard(stack.database)

    async def ended() -> bool:
        return bool(await stack.database.fetchval("SELECT finished_at IS NOT NULL FROM runs WHERE id = $1", run.id))

    await eventually(ended)
    assert time.monotonic() - began < 5
    await assert_history(stack.database, run.id)


async def test_many_runs_that_no_bell_told_of_are_all_done(stack: Stack) -> None:
    runs = [await unheard(stack.database) for _ in range(50)]

    async def ended() -> bool:
        return await all_ended(stack.database)

    await eventually(ended)
    for run in runs:
        await assert_history(stack.database, run.id)


async def test_two_workers_that_hear_ten_bells_for_each_run_execute_it_once(
    own: OwnStack, model: ScriptedModel
) -> None:
    stack = await own.stack(apis=0, workers=2)
    redis = Redis.from_url(stack.redis_url)
    bell = Bell(redis)
    scripts = [model.script(Reply(tokens=["a ", "b"], token_delay=0.01)) for _ in range(40)]
    runs = []
    for script in scripts:
        runs.append(await unheard(stack.database, model=script))
        await asyncio.gather(*(bell.ring() for _ in range(10)))

    async def ended() -> bool:
        return await all_ended(stack.database)

    await eventually(ended, within=30)
    workers = set()
    for run, script in zip(runs, scripts, strict=True):
        history = await assert_history(stack.database, run.id)
        assert (history.run["epoch"], history.run["attempt"], history.run["status"]) == (1, 1, "succeeded")
        assert len(model.asked(script)) == 1
        workers.add(history.of("run_started")[0].data["worker"])
    assert len(workers) == 2, "one worker did it all: the test shows nothing"
    await bell.aclose()
    await redis.aclose()


async def test_arq_wakes_the_executor_when_the_list_is_lost(
    own_database: Pool, redis: Redis, settings: Settings
) -> None:
    journal = Journal(own_database, Publisher(redis), on_next_run=lambda: None)
    models, embedder = Models(settings), choose_embedder(settings)
    engine = Engine(
        own_database,
        models=models,
        outfitter=Outfitter(Toolbox([]), SkillRegistry(), {}),
        memory=PostgresMemory(own_database, embedder),
    )
    bell = Bell(redis)
    executor = Executor(
        leases=Leases(own_database, worker="host:1", lease_seconds=10),
        journal=journal,
        engine=engine,
        charges=Charges(own_database),
        vigil=Vigil(),
        slots=5,
        ring=bell.ring,
    )
    chores = asyncio.create_task(
        Chores(redis, executor, Retention(own_database, Policies.from_settings(settings))).run()
    )
    assert executor.free == 5
    await bell.ring()
    await redis.delete(BELL_KEY)

    async def woken() -> bool:
        return executor.free < 5

    await eventually(woken)
    assert await redis.zcard(QUEUE_KEY) == 0
    chores.cancel()
    await asyncio.gather(chores, return_exceptions=True)
    await bell.aclose()
    await models.aclose()
    await embedder.aclose()
