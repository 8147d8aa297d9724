"""Where Redis keeps the working windows of sessions. What they hold is the orchestrator's business; here they go."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

_PATIENCE: Final = 0.5


def window_key(org_id: str, session_id: str) -> str:
    """Where the window of a session lies."""
    return f"lh:{org_id}:window:{session_id}"


async def forget_window(redis: Redis, org_id: str, session_id: str) -> None:
    """Removes the window of a session that was deleted. Where Redis is away, it goes when its time is over."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await redis.delete(window_key(org_id, session_id))
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("window_not_forgotten", session_id=session_id, error=repr(error), effect="it goes with its time")
