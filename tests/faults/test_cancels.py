"""A cancel at every event of a run with sub-agents and tools: cancelled or finished, never both, and at once."""

from __future__ import annotations

import asyncio
import time

from tests.e2e.caller import Stream
from tests.faults.plans import Plan
from tests.faults.scene import Scene, scripted

AT_ONCE = 12
"""Runs at work at the same time."""


async def test_a_run_that_is_cancelled_at_any_event_is_cancelled_or_finished_within_two_seconds(scene: Scene) -> None:
    undisturbed = scripted()
    async with scene.follow(undisturbed) as stream:
        await stream.rest()
    room = asyncio.Semaphore(AT_ONCE)

    async def cancelled(event: int) -> tuple[Plan, Stream, float]:
        plan = scripted()
        async with room, scene.follow(plan) as stream:
            for _ in range(event):
                await stream.next()
            began = time.monotonic()
            await scene.caller.post(f"/v1/runs/{stream.events[0].data['run_id']}/cancel")
            await stream.rest()
            return plan, stream, time.monotonic() - began

    outcomes = await asyncio.gather(*(cancelled(event) for event in range(1, len(stream.events) + 1)))
    statuses = []
    for plan, stream, seconds in outcomes:
        history = await scene.checked(plan, stream)
        statuses.append(history.run["status"])
        assert seconds < 2, f"{seconds:.1f} s for {history.types}"
    assert set(statuses) == {"cancelled", "succeeded"}
    assert statuses.count("cancelled") > len(statuses) / 2
