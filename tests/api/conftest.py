"""An API in this process on a loopback socket, over the shared database, and clients that call it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from kernel.postgres import Pool, open_pool
from kernel.settings import Settings
from kernel.tenants import create_key, ensure_org
from tests.api.serving import serving
from tests.conftest import MakeDatabase


@dataclass(frozen=True, slots=True)
class Apart:
    """An API on a database of its own, where a test can play the worker: what it claims is its own."""

    database: Pool
    client: httpx.AsyncClient
    settings: Settings


@pytest.fixture(scope="session")
async def url(settings: Settings) -> AsyncIterator[str]:
    """Where the API answers. No worker is behind it: what is queued stays queued."""
    threshold = gc.get_threshold()
    async with serving(settings) as url:
        yield url
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.fixture
async def client(url: str, api_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """Calls with a key of the test's own org."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client:
        yield client


@pytest.fixture
async def stranger(url: str, database: Pool) -> AsyncIterator[httpx.AsyncClient]:
    """Calls with a key of another org."""
    org = await ensure_org(database, f"stranger {uuid4().hex}")
    secret = (await create_key(database, org, name="stranger")).secret.get_secret_value()
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {secret}"}) as client:
        yield client


@pytest.fixture
async def nobody(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Calls without a credential."""
    async with httpx.AsyncClient(base_url=url) as client:
        yield client


@pytest.fixture
async def apart(make_database: MakeDatabase, settings: Settings) -> AsyncIterator[Apart]:
    database_url = await make_database()
    own = settings.model_copy(update={"database_url": SecretStr(database_url)})
    pool = await open_pool(database_url, size=4, name="tests")
    key = (await create_key(pool, await ensure_org(pool, "own"), name="own")).secret.get_secret_value()
    async with (
        serving(own) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client,
    ):
        yield Apart(pool, client, own)
    await pool.close()
