"""Stacks that tests may harm, apart from the one that all others share; a failure shows what the processes logged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.embedded import EmbeddedRedis
from cli.embedded.directory import DataDirectory
from cli.rehearsal import ModelServer
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, calling
from tests.faults.crew import PATIENT_MODEL, SHORT_LEASES, org_with_key
from tests.faults.outside import outside_world
from tests.faults.plans import SUB_AGENTS, TOOLS, Player
from tests.faults.scene import Scene
from tests.scripts import ScriptedModel
from tests.stack import Stack


@pytest.fixture(scope="session")
async def mortal(make_stack: MakeStack, model: ScriptedModel) -> Stack:
    """One API; leases of a second. Each test says how many workers it wants."""
    return await make_stack(
        workers=0,
        LONGHAUL_GRACE_SECONDS="1",
        LONGHAUL_EGRESS_ALLOW=urlsplit(model.url).netloc,
        **SHORT_LEASES,
    )


@pytest.fixture
async def caller(mortal: Stack) -> AsyncIterator[Caller]:
    """A caller of `mortal`, of an org of the test's own."""
    async with calling(mortal.url, (await org_with_key(mortal))[1]) as caller:
        yield caller


@pytest.fixture(scope="session")
async def unsteady_redis(folder: Path) -> AsyncIterator[EmbeddedRedis]:
    """A Redis for tests that end it. They start it again."""
    data = DataDirectory(folder / "unsteady")
    data.create()
    redis = EmbeddedRedis(data)
    await redis.start()
    yield redis
    await redis.stop()


@pytest.fixture(scope="session")
async def pair(make_stack: MakeStack, unsteady_redis: EmbeddedRedis) -> Stack:
    """Two APIs and a worker on a Redis that comes and goes; leases of the usual length."""
    return await make_stack(apis=2, workers=1, redis_url=unsteady_redis.url, **PATIENT_MODEL)


@pytest.fixture
async def pair_caller(pair: Stack) -> AsyncIterator[Caller]:
    """A caller of `pair`'s first API, of an org of the test's own."""
    async with calling(pair.url, (await org_with_key(pair))[1]) as caller:
        yield caller


@pytest.fixture(scope="package")
async def scene(make_stack: MakeStack) -> AsyncIterator[Scene]:
    """A stack whose model plays plans; leases of a second."""
    async with outside_world() as outside, ModelServer(Player(outside.url)) as player:
        settings = {"OPENAI_BASE_URL": player.url, "LONGHAUL_EGRESS_ALLOW": outside.address, "LONGHAUL_SLOTS": "100"}
        stack = await make_stack(**settings, **SHORT_LEASES)
        async with calling(stack.url, (await org_with_key(stack))[1]) as caller:
            tools = [*TOOLS.values()]
            team = [{"name": name, "tools": tools} for name in SUB_AGENTS]
            agent = await caller.agent(tools=tools, sub_agents=team, memory={"recall": False})
            yield Scene(stack, outside, stack.workers[0], caller, agent)
        await stack.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        found = [item.funcargs.get(name) for name in ("mortal", "pair", "scene", "remote")]
        stacks = [getattr(fixture, "stack", fixture) for fixture in found]
        report.sections += [("logs of the stack", stack.logs()) for stack in stacks if isinstance(stack, Stack)]
    return report
