"""An org in the database that a test has to itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from kernel.postgres import Pool
from kernel.tenants import ensure_org
from tests.kernel.writing import Writer, writing


@pytest.fixture
async def own_org(own_database: Pool) -> str:
    return await ensure_org(own_database, "own")


@pytest.fixture
async def writer(own_database: Pool, redis: Redis) -> AsyncIterator[Writer]:
    async with writing(own_database, redis) as at_work:
        yield at_work
