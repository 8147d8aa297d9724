"""A run that kills whoever executes it: it is parked, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from tests.faults.plans import READ, Plan
from tests.faults.scene import Scene

WORKERS = 5


async def test_a_poison_run_is_parked_and_the_runs_that_died_with_it_succeed(scene: Scene) -> None:
    scene.steady.send(signal.SIGSTOP)
    # Each dies of the poison once; the last is left to carry on.
    mortals = scene.stack.spawn_worker(
        {"CRASH_AT": " ".join(["before_poison:1"] * WORKERS), "LONGHAUL_DATABASE_POOL": "2"},
        module="tests.faults.crashing_worker",
    )
    # Innocent runs whose one answer takes longer than three deaths and recoveries do.
    innocent = [Plan(name=f"innocent-{number}", steps=[], words=30, pause=0.2) for number in range(3)]
    poison = Plan(name="poison", steps=[[(READ, "/read/poison")]], words=2, pause=0.3)
    async with AsyncExitStack() as open_streams:
        streams = [await open_streams.enter_async_context(scene.follow(plan)) for plan in [*innocent, poison]]
        *unhurt, poisoned = streams
        await asyncio.gather(*(stream.rest() for stream in streams))
    mortals.send(signal.SIGTERM)
    assert await mortals.wait() == 0, mortals.log
    scene.steady.send(signal.SIGCONT)
    history = await scene.checked(poison, poisoned)
    assert (history.run["status"], history.run["finish_reason"]) == ("failed", "poisoned")
    assert len(history.attempts()) == 5  # once more than three times, to tell it from those beside it
    [error] = history.of("error")
    assert error.data["code"] == "poisoned"
    for plan, stream in zip(innocent, unhurt, strict=True):
        history = await scene.checked(plan, stream)
        assert history.run["status"] == "succeeded", (history.run["error"], history.types)
