"""How long memory waits for Postgres, and what becomes of its failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from kernel.errors import NotFound
from kernel.postgres import UNAVAILABLE
from memory.errors import MemoryUnavailable


@asynccontextmanager
async def in_time(patience: float) -> AsyncIterator[None]:
    """What can go wrong between us and Postgres, within `patience` seconds, becomes an error that a run may live
    without.

    Raises:
        NotFound: there is no such org.
        MemoryUnavailable: Postgres is away or too slow, or can't do what we ask of it.
    """
    try:
        async with asyncio.timeout(patience):
            yield
    except asyncpg.ForeignKeyViolationError as error:
        raise NotFound("there is no such org", field="org_id") from error
    except asyncpg.IntegrityConstraintViolationError:
        raise  # a bug of ours, not of the weather
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        raise MemoryUnavailable(
            f"memories can't be reached: {type(error).__name__}",
            suggestions=("try again", "check Postgres and that its migrations have run"),
        ) from error
