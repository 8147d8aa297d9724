"""Tasks that end when they are told to.

One cancellation is not always enough. Before Python 3.12, `asyncio.wait_for` drops the one that comes in the very
moment in which its future is done (python/cpython#86296), and redis-py sends every command with it. So whatever
talks to Redis is cancelled until it has ended; a loop that lost its cancellation would hold up the process for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

_AGAIN_AFTER: Final = 0.1


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks until all of them have ended, and drops what they ended with."""
    cancelled = False
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=_AGAIN_AFTER)
        except asyncio.CancelledError:
            cancelled = True
            pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled:
        raise asyncio.CancelledError


async def side_by_side(**work: Coroutine[Any, Any, None]) -> None:
    """Runs named coroutines until all have returned. If one fails, or the caller is cancelled, the others are ended.

    Raises:
        Exception: that of the one that failed first.
    """
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await end(*tasks)
