"""What all tests stand on: one Postgres and one Redis for the session, databases made from a migrated template, an
org of its own for each test, a scripted model, and a running stack.

The fixture `database` is shared and has no workers: what is queued there stays queued. A test that claims takes
`own_database`, where nothing but its own runs can be.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from redis.asyncio import Redis
from xdist.scheduler.loadscope import LoadScopeScheduling

from cli.embedded import EmbeddedServers
from kernel.postgres import Pool, open_pool
from kernel.settings import Settings
from kernel.tenants import create_key, ensure_org
from migrations.runner import migrate
from tests.scripts import ScriptedModel, scripted_model
from tests.stack import SECRET_KEY, Stack

pytest.register_assert_rewrite("tests.history", "tests.e2e.caller")

TEMPLATE = "template_longhaul"

MakeDatabase = Callable[[], Awaitable[str]]
MakeStack = Callable[..., Awaitable[Stack]]


LONGEST_TEST = 60.0
"""Seconds after which a test that waits for something counts as failed."""

LONGEST_BUSY_TEST = 300.0
"""The same for tests marked `busy`: they compute all the time, so they take as long as the machine does."""


MOST_PROCESSES = 4

# What takes longest begins first, so that it is not all that is left at the end.
FIRST = ("tests/faults/", "tests/e2e/", "tests/chaos/", "tests/orchestrator/", "tests/api/", "tests/cli/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`: one process for each core. For single files there are none: starting them takes longer."""
    if all(".py" in argument for argument in config.args):
        return 0
    return min(os.cpu_count() or 1, MOST_PROCESSES)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole files, in their order: what tests of one file share is made once. Those of tests/faults watch
    clocks while they stop and starve processes, and are never beside each other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/faults" if file.startswith(("tests/faults/", "tests/chaos/")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """See `ByFile`. Each process has servers of its own."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """No test hangs: what it waits for in vain is then in the traceback."""
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            busy = item.get_closest_marker("busy") is not None
            item.obj = _limited(item.obj, LONGEST_BUSY_TEST if busy else LONGEST_TEST)


def _turn(item: pytest.Item) -> int:
    return next((number for number, folder in enumerate(FIRST) if item.nodeid.startswith(folder)), len(FIRST))


def _limited(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def limited(*arguments: object, **fixtures: object) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return limited


@pytest.fixture(autouse=True, scope="session")
def _no_blocking_calls() -> Iterator[BlockBuster]:
    """A call of ours that blocks the event loop is an error."""
    with blockbuster_ctx(scanned_modules=["kernel", "api", "worker", "orchestrator", "memory"]) as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("asyncpg/connect_utils.py", "_parse_connect_dsn_and_args")  # looks for ~/.pgpass
            # A logged traceback shows the source.
            function.can_block_in("linecache.py", ("checkcache", "updatecache"))
            function.can_block_in("rich/traceback.py", "_render_stack")
        yield blockbuster


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A place for data and logs, on a path that is short enough for sockets."""
    name = tempfile.mkdtemp(prefix="longhaul-tests-")
    yield Path(name)
    # Hundreds of databases are 200,000 files. Nobody has to wait until they are gone.
    subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', name], check=False, start_new_session=True)


@pytest.fixture(scope="session")
async def servers(folder: Path) -> AsyncIterator[EmbeddedServers]:
    """Postgres with a migrated template database, and Redis."""
    async with EmbeddedServers(folder / "servers") as running:
        admin = await asyncpg.connect(running.database_url)
        await admin.execute(f"CREATE DATABASE {TEMPLATE}")
        await migrate(_named(running.database_url, TEMPLATE))
        await admin.close()
        yield running
        # Without a last checkpoint, which would write for half a minute what is about to be removed.
        pid = (folder / "servers" / "postgres" / "postmaster.pid").read_text().split()[0]
        os.kill(int(pid), signal.SIGQUIT)


@pytest.fixture(scope="session")
def make_database(servers: EmbeddedServers) -> MakeDatabase:
    """Makes an empty migrated database; its URL. Databases go with the server: dropping one takes a second."""
    numbers = count(1)

    async def make() -> str:
        name = f"test_{next(numbers)}"
        admin = await asyncpg.connect(servers.database_url)
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        await admin.close()
        return _named(servers.database_url, name)

    return make


@pytest.fixture(scope="session")
async def database_url(make_database: MakeDatabase) -> str:
    return await make_database()


@pytest.fixture(scope="session")
async def database(database_url: str) -> AsyncIterator[Pool]:
    """A pool on a migrated database that all tests share and no worker looks at."""
    pool = await open_pool(database_url, size=10, name="tests")
    yield pool
    await pool.close()


@pytest.fixture
async def own_database(make_database: MakeDatabase) -> AsyncIterator[Pool]:
    """A pool on a migrated database of this test alone."""
    pool = await open_pool(await make_database(), size=10, name="tests")
    yield pool
    await pool.close()


@pytest.fixture(scope="session")
def redis_url(servers: EmbeddedServers) -> str:
    return servers.redis_url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def org(database: Pool) -> str:
    """An org of this test alone, with its default agent."""
    return await ensure_org(database, f"org {uuid4().hex}")


@pytest.fixture
async def api_key(database: Pool, org: str) -> str:
    """A key of `org` that may read and write."""
    return (await create_key(database, org, name="tests")).secret.get_secret_value()


@pytest.fixture(scope="session")
async def model() -> AsyncIterator[ScriptedModel]:
    """The model whose answers the tests write."""
    async with scripted_model() as model:
        yield model


@pytest.fixture(scope="session")
def settings(database_url: str, redis_url: str, model: ScriptedModel, folder: Path) -> Settings:
    """The settings of a process on `database`, `redis_url` and `model`."""
    return Settings.model_validate(
        {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "LLM_MODEL": "no-script",
            "secret_key": SECRET_KEY,
            "files_url": (folder / "files").as_uri(),
        }
    )


@pytest.fixture(scope="session")
async def make_stack(
    folder: Path, make_database: MakeDatabase, redis_url: str, model: ScriptedModel
) -> AsyncIterator[MakeStack]:
    """Starts a stack on a database of its own. Keyword arguments: `apis`, `workers`, `redis_url`, settings by
    their names in the environment. The caller stops it, else the end of the session does."""
    numbers = count(1)
    async with AsyncExitStack() as stacks:

        async def make(*, apis: int = 1, workers: int = 1, redis_url: str = redis_url, **environment: str) -> Stack:
            number = next(numbers)
            # Bells of one stack must not ring in another. Redis has 16 databases; the tests themselves use 0.
            apart = f"{redis_url}?db={1 + number % 15}"
            stack = Stack(
                folder / f"stack-{number}",
                database_url=await make_database(),
                redis_url=apart,
                model_url=model.url,
                environment=environment,
            )
            stacks.push_async_callback(stack.stop)
            await stack.start(apis=apis, workers=workers)
            return stack

        yield make


@pytest.fixture(scope="session")
async def stack(make_stack: MakeStack) -> Stack:
    """One API and one worker for all tests that harm neither."""
    return await make_stack()


def _named(database_url: str, name: str) -> str:
    return database_url.replace("@/longhaul?", f"@/{name}?")
