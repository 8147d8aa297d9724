"""Tasks end when they are told to, also those that lose a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from kernel.tasks import end, side_by_side


async def deaf(times: int) -> None:
    """Drops so many cancellations, as libraries may."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if times == 0:
                raise
            times -= 1


async def failing() -> None:
    raise ValueError("of its own accord")


async def begun(*tasks: asyncio.Task[None]) -> None:
    """Lets tasks come to where they wait."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert all(not task.done() for task in tasks)


async def test_a_task_that_loses_cancellations_ends_all_the_same() -> None:
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 2)]
    await begun(*tasks)
    await end(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_ending_what_has_ended_says_nothing_of_how() -> None:
    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    await end(task)
    await end()


async def test_who_is_cancelled_while_ending_others_ends_them_first() -> None:
    task = asyncio.create_task(deaf(2))
    await begun(task)
    ending = asyncio.create_task(end(task))
    await begun(ending)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert task.done()


async def test_one_that_fails_ends_the_others_and_is_told_of() -> None:
    with pytest.raises(ValueError, match="of its own accord"):
        await side_by_side(deaf=deaf(1), failing=failing())


async def test_a_cancellation_ends_all_of_them() -> None:
    running = asyncio.create_task(side_by_side(one=deaf(0), two=deaf(2)))
    await begun(running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"one", "two"}


async def test_it_returns_when_all_have() -> None:
    async def brief() -> None:
        await asyncio.sleep(0)

    await side_by_side(one=brief(), two=brief())
