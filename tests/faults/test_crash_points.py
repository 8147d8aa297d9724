"""Workers that die at a named point, at every index of a run with two sub-agents and several tools.

Whatever the point: the run goes on elsewhere and ends in one `done`, its history is whole, its follower gets the log
byte for byte, and no effect that must not be repeated was made twice.
"""

from __future__ import annotations

import asyncio
import os
import pkgutil
import random
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from tests.faults.crash_points import CRASH_POINTS
from tests.faults.plans import calls
from tests.faults.scene import Scene, scripted
from tests.history import History

AT_EVENTS = ("before_commit", "after_commit", "after_publish")
"""Passed at every event of a run."""

AT_TOOLS = ("before_tool", "after_tool")
"""Passed at every call of a tool."""

AT_ONCE = 16
"""Crashes that are tried side by side."""

PARTS = 8
"""In which all crashes are tried, one after the other."""


def test_every_crash_point_is_a_place_in_the_product() -> None:
    for name, point in CRASH_POINTS.items():
        assert asyncio.iscoroutinefunction(pkgutil.resolve_name(point.target)), name


async def test_a_run_whose_worker_dies_anywhere_ends_once_and_repeats_no_effect(scene: Scene) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(10**6)))
    print(f"CRASH_SEED={seed}")  # noqa: T201  # shown when it fails
    histories = await crash(scene, random.Random(seed).sample(await all_crashes(scene), AT_ONCE))
    # Of the owners most have died; of one run two may have, if the second started late.
    assert sum(history.run["epoch"] - 1 for history in histories) > AT_ONCE / 2


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
async def test_a_run_whose_worker_dies_at_any_index_ends_once_and_repeats_no_effect(scene: Scene, part: int) -> None:
    await crash(scene, (await all_crashes(scene))[part::PARTS])


async def test_a_run_whose_next_owner_dies_while_it_takes_over_is_taken_over_again(scene: Scene) -> None:
    [history] = await crash(scene, ["after_commit:12"], then="during_take_over:1")
    assert (history.run["status"], history.run["epoch"]) == ("succeeded", 3)


async def all_crashes(scene: Scene) -> list[str]:
    """Every point at every index that a run has."""
    plan = scripted()
    async with scene.follow(plan) as stream:
        await stream.rest()
    assert stream.events[-1].data["status"] == "succeeded"
    events, tools = len(stream.events), sum(1 for _ in calls(plan))
    crashes = [f"{point}:{index}" for point in AT_EVENTS for index in range(1, events + 1)]
    crashes += [f"{point}:{index}" for point in AT_TOOLS for index in range(1, tools + 1)]
    return [*crashes, "before_claim:1", "after_claim:1", "before_end_commit:1", "after_end_commit:1"]


async def crash(scene: Scene, crash_ats: Sequence[str], *, then: str = "") -> list[History]:
    """One run for each crash, each on a worker of its own that dies there, the next owner at `then`; the steady worker
    does the rest."""
    scene.steady.send(signal.SIGSTOP)
    dying = scene.doomed(crash_ats)
    plans = [scripted() for _ in crash_ats]
    async with AsyncExitStack() as open_streams:
        streams = [await open_streams.enter_async_context(scene.follow(plan)) for plan in plans]
        run_ids = [(await stream.until("run_queued")).data["run_id"] for stream in streams]
        await scene.until_claimed(run_ids, dying)
        if then:
            assert await scene.doomed([then] * len(crash_ats)).wait() == 0
        scene.steady.send(signal.SIGCONT)
        await asyncio.gather(*(stream.rest() for stream in streams))
    if dying.alive:  # those that were to die later than their run had ended
        dying.send(signal.SIGTERM)
    assert await dying.wait() == 0, dying.log
    histories = [await scene.checked(plan, stream) for plan, stream in zip(plans, streams, strict=True)]
    for history in histories:
        assert history.run["status"] == "succeeded", (history.run["error"], history.types)
    return histories
