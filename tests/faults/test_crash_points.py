"""Workers that die at a named point, at every index of a run with two sub-agents and three tools.

Whatever the point: the run goes on elsewhere and ends in one `done`, its history is whole, its follower gets the log
byte for byte, and no effect that must not be repeated was made twice.
"""

from __future__ import annotations

import asyncio
import os
import pkgutil
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from cli.rehearsal import ModelServer
from tests.conftest import MakeStack
from tests.e2e.caller import Caller, Stream, calling
from tests.faults.crash_points import CRASH_POINTS
from tests.faults.crew import SHORT_LEASES, log_bytes, org_with_key
from tests.faults.outside import Outside, outside_world
from tests.faults.plans import IDEMPOTENT, ONCE, READ, SUB_AGENTS, TOOLS, Plan, Player, calls
from tests.history import History, assert_history
from tests.stack import Program, Stack
from tests.waiting import eventually

AT_EVENTS = ("before_commit", "after_commit", "after_publish")
"""Passed at every event of a run."""

AT_TOOLS = ("before_tool", "after_tool")
"""Passed at every call of a tool."""

AT_ONCE = 24
"""Crashes that are tried side by side."""

PARTS = 8
"""In which all crashes are tried, one after the other."""


ONE_RUN_EACH = {
    "LONGHAUL_SLOTS": "1",
    "LONGHAUL_DATABASE_POOL": "2",
    # A worker that outlives its run before all are dead must not go on with the others'.
    "LONGHAUL_LEASE_SECONDS": "3",
    "LONGHAUL_LEASE_RENEW_SECONDS": "1",
}


def scripted(name: str) -> Plan:
    """Three calls of tools, two sub-agents of which one calls a tool itself, and an answer."""
    clerk = Plan(name=f"{name}-clerk", steps=[[(ONCE, f"/once/{name}-clerk")]], words=2, pause=0.01)
    scout = Plan(name=f"{name}-scout", steps=[], words=3, pause=0.01)
    steps: list[list[tuple[str, Any]]] = [
        [(READ, f"/read/{name}"), (IDEMPOTENT, f"/idempotent/{name}"), (ONCE, f"/once/{name}")],
        [("scout", scout), ("clerk", clerk), (ONCE, f"/once/{name}-beside")],
    ]
    return Plan(name=name, steps=steps, words=6, pause=0.01)


@dataclass(frozen=True, slots=True)
class Scene:
    """A stack with one steady worker, which stands still while others crash."""

    stack: Stack
    outside: Outside
    steady: Program
    caller: Caller
    agent: str

    def follow(self, plan: Plan) -> AbstractAsyncContextManager[Stream]:
        """Takes in a run and follows it."""
        return self.caller.following(orjson.dumps(plan).decode(), agent_id=self.agent)


@pytest.fixture(scope="module")
async def scene(make_stack: MakeStack) -> AsyncIterator[Scene]:
    async with outside_world() as outside, ModelServer(Player(outside.url)) as player:
        stack = await make_stack(
            OPENAI_BASE_URL=player.url, LONGHAUL_EGRESS_ALLOW=outside.address, LONGHAUL_SLOTS="40", **SHORT_LEASES
        )
        async with calling(stack.url, (await org_with_key(stack))[1]) as caller:
            tools = sorted(set(TOOLS.values()))
            team = [{"name": name, "tools": tools} for name in SUB_AGENTS]
            agent = await caller.agent(tools=tools, sub_agents=team, memory={"recall": False})
            yield Scene(stack, outside, stack.workers[0], caller, agent)
            stack.workers[0].send(signal.SIGCONT)
        await stack.stop()


async def crash(scene: Scene, crash_ats: Sequence[str]) -> list[History]:
    """One run for each crash, each on a worker of its own that dies there; the steady worker does the rest."""
    scene.steady.send(signal.SIGSTOP)
    dying = scene.stack.spawn_worker(
        {"CRASH_AT": " ".join(crash_ats), **ONE_RUN_EACH}, module="tests.faults.crashing_worker"
    )
    plans = [scripted(f"{crash_at.replace(':', '-')}-{random.randrange(10**9)}") for crash_at in crash_ats]
    async with AsyncExitStack() as open_streams:
        streams = [await open_streams.enter_async_context(scene.follow(plan)) for plan in plans]
        run_ids = [(await stream.until("run_queued")).data["run_id"] for stream in streams]

        async def none_queued() -> bool:
            query = "SELECT NOT EXISTS (SELECT FROM runs WHERE id = ANY ($1) AND status = 'queued')"
            return not dying.alive or bool(await scene.stack.database.fetchval(query, run_ids))

        await eventually(none_queued, within=30)
        scene.steady.send(signal.SIGCONT)
        await asyncio.gather(*(stream.rest() for stream in streams))
    if dying.alive:
        dying.send(signal.SIGTERM)
    assert await dying.wait() == 0, dying.log
    histories = []
    for plan, stream in zip(plans, streams, strict=True):
        history = await assert_history(scene.stack.database, stream.events[0].data["run_id"])
        assert history.run["status"] == "succeeded", (history.run["error"], history.types)
        assert stream.frames == await log_bytes(scene.stack, history.run["session_id"])
        for effect, path in calls(plan):
            seen = scene.outside.seen[path]
            assert len(seen) <= 1 or effect != ONCE, f"{path} was done {len(seen)} times"
            assert len({request.key for request in seen}) <= 1, f"{path} was repeated under another key"
        histories.append(history)
    return histories


def test_every_crash_point_is_a_place_in_the_product() -> None:
    for name, point in CRASH_POINTS.items():
        assert asyncio.iscoroutinefunction(pkgutil.resolve_name(point.target)), name


async def all_crashes(scene: Scene) -> list[str]:
    """Every point at every index that a run has."""
    async with scene.follow(scripted("undisturbed")) as stream:
        await stream.rest()
    assert stream.events[-1].data["status"] == "succeeded"
    events, tools = len(stream.events), sum(1 for _ in calls(scripted("")))
    crashes = [f"{point}:{index}" for point in AT_EVENTS for index in range(1, events + 1)]
    crashes += [f"{point}:{index}" for point in AT_TOOLS for index in range(1, tools + 1)]
    return [*crashes, "before_claim:1", "after_claim:1", "before_end_commit:1", "after_end_commit:1"]


async def test_a_run_whose_worker_dies_anywhere_ends_once_and_repeats_no_effect(scene: Scene) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(10**6)))
    print(f"CRASH_SEED={seed}")  # noqa: T201  # shown when it fails
    crashes = random.Random(seed).sample(await all_crashes(scene), AT_ONCE)
    histories = await crash(scene, crashes)
    deaths = sum(history.run["epoch"] > 1 for history in histories)
    assert deaths > AT_ONCE / 2


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
async def test_a_run_whose_worker_dies_at_any_index_ends_once_and_repeats_no_effect(scene: Scene, part: int) -> None:
    await crash(scene, (await all_crashes(scene))[part::PARTS])
