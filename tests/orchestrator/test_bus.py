"""The event bus: handlers hear what they asked for, and none hurts another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kernel.events import render_frame
from orchestrator.bus import MOST_WAITING, BusEvent, EventBus, EventHandler, on
from orchestrator.measures import Measures
from tests.waiting import eventually


def frames(*types: str, first: int = 1) -> bytes:
    at = "2026-01-31T12:00:00.000001Z"
    return b"".join(
        render_frame(seq, type, "ses_1", "run_1", at, '{"text":"a\\n\\nevent: done"}')
        for seq, type in enumerate(types, first)
    )


@asynccontextmanager
async def running(**handlers: EventHandler) -> AsyncIterator[tuple[Callable[[bytes], None], Measures]]:
    measures = Measures()
    bus = EventBus(handlers, measures)
    bus.start()
    yield lambda sent: bus.offer("org_1", "ses_1", "run_1", sent), measures
    await bus.aclose()
    assert not bus.stuck


def counted(measures: Measures, handler: str) -> dict[str, int]:
    outcomes: dict[str, int] = measures.shown().get("handlers", {}).get(handler, {}).get("outcomes", {})
    return outcomes


def reached(measures: Measures, handler: str, **outcomes: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return counted(measures, handler) == outcomes

    return reached


async def test_a_handler_hears_its_types_in_order_and_another_hears_everything() -> None:
    ends: list[BusEvent] = []
    everything: list[str] = []

    @on("done", "error")
    async def hear_ends(event: BusEvent) -> None:
        ends.append(event)

    @on("*")
    def hear_all(event: BusEvent) -> None:
        everything.append(event.type)

    async with running(ends=hear_ends, all=hear_all) as (offer, measures):
        offer(frames("run_started", "message"))
        offer(frames("error", "done", first=3))
        await eventually(reached(measures, "all", ok=4), within=5, what="all were told")
    assert everything == ["run_started", "message", "error", "done"]
    assert [(event.seq, event.type) for event in ends] == [(3, "error"), (4, "done")]
    assert ends[0].data["text"] == "a\n\nevent: done"
    assert (ends[0].org_id, ends[0].session_id, ends[0].run_id) == ("org_1", "ses_1", "run_1")


async def test_failing_and_hanging_handlers_hurt_no_other() -> None:
    heard: list[str] = []
    released = threading.Event()

    @on("*")
    def failing(event: BusEvent) -> None:
        raise SystemExit("no")

    @on("*", timeout=0.05)
    async def hanging(event: BusEvent) -> None:
        await asyncio.Event().wait()

    @on("*", timeout=0.05)
    def blocking(event: BusEvent) -> None:
        released.wait(20)

    @on("*")
    async def good(event: BusEvent) -> None:
        heard.append(event.type)

    async with running(failing=failing, hanging=hanging, blocking=blocking, good=good) as (offer, measures):
        began = time.perf_counter()
        offer(frames("run_started", "done"))
        assert time.perf_counter() - began < 0.05
        await eventually(reached(measures, "good", ok=2), within=5, what="the good one was told")
        await eventually(reached(measures, "failing", failed=2), within=5, what="the failing one was told")
        await eventually(reached(measures, "hanging", timed_out=2), within=5, what="the hanging one was given up")
        await eventually(
            reached(measures, "blocking", timed_out=1, dropped=1), within=5, what="the blocking one was given up"
        )
        released.set()
    assert heard == ["run_started", "done"]


async def test_what_a_slow_handler_can_not_take_is_dropped_and_counted() -> None:
    go = asyncio.Event()

    @on("done")
    async def slow(event: BusEvent) -> None:
        await go.wait()

    async with running(slow=slow) as (offer, measures):
        for _ in range(MOST_WAITING + 10):
            offer(frames("done"))
        assert counted(measures, "slow")["dropped"] >= 9
        go.set()


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_end() -> None:
    released = asyncio.Event()

    @on("*", timeout=60)
    async def stubborn(event: BusEvent) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    bus = EventBus({"stubborn": stubborn}, Measures())
    bus.start()
    bus.offer("org_1", "ses_1", "run_1", frames("done"))
    async with asyncio.timeout(10):
        await bus.aclose()
    assert bus.stuck
    released.set()

    async def ended() -> bool:
        return not bus.stuck

    await eventually(ended, what="it has ended once its handler returned")


@pytest.mark.parametrize("types", [(), ("finished",)])
def test_a_handler_of_no_event_there_is_is_refused(types: Any) -> None:
    with pytest.raises(ValueError, match="no such events"):
        on(*types)
