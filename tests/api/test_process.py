"""The API as a process: how it starts, what it weighs, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from kernel.settings import Settings
from tests.api.checks import ok
from tests.api.streams import opened
from tests.waiting import eventually

MOST_MEMORY = 90 * 1024  # KiB, idle


def environment(settings: Settings, **changes: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "LONGHAUL_SECRET_KEY": settings.secret_key.get_secret_value(),
        "LONGHAUL_PORT": "0",
        **changes,
    }


async def run_to_its_end(variables: dict[str, str]) -> tuple[int | None, str]:
    """Exit code and stderr of a process that is to end by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", env=variables, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


@asynccontextmanager
async def running(variables: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that serves, and its URL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api",
        env={**variables, "LONGHAUL_PORT": str(port)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    async def serves() -> bool:
        assert process.returncode is None
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{url}/health")).status_code == 200
            except httpx.TransportError:
                return False

    try:
        await eventually(serves, within=30, every=0.05, what="the API serves")
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_missing_settings_are_all_named_at_once() -> None:
    code, errors = await run_to_its_end({"PATH": os.environ["PATH"], "LONGHAUL_PORT": "no number"})
    assert code == 2
    for name in ("DATABASE_URL", "REDIS_URL", "LONGHAUL_SECRET_KEY", "LONGHAUL_PORT"):
        assert name in errors
    assert "Traceback" not in errors


async def test_an_address_that_is_taken_is_said_and_ends_the_process(settings: Settings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        code, errors = await run_to_its_end(environment(settings, LONGHAUL_PORT=port))
    assert code == 1
    assert "address_not_available" in errors
    assert "Traceback" not in errors


async def test_a_postgres_that_is_not_there_is_said_and_ends_the_process(settings: Settings, folder: Path) -> None:
    url = f"postgresql://someone:hidden-word@/d?host={folder}/none"
    code, errors = await run_to_its_end(environment(settings, DATABASE_URL=url))
    assert code == 3
    assert "Postgres can't be reached" in errors
    assert "Traceback" not in errors
    assert "hidden-word" not in errors


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
async def test_an_idle_process_stays_within_90_mb(settings: Settings) -> None:
    async with running(environment(settings)) as (process, url):
        async with httpx.AsyncClient() as client:
            ok(await client.get(f"{url}/openapi.json"))
            ok(await client.get(f"{url}/ready"))
        status = await asyncio.to_thread(Path(f"/proc/{process.pid}/status").read_text)
        memory = int(status.split("VmRSS:")[1].split()[0])
        assert memory <= MOST_MEMORY, f"{memory} KiB"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_open_streams_and_the_process_with_exit_code_0(
    settings: Settings, api_key: str, number: signal.Signals
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    async with (
        running(environment(settings)) as (process, url),
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
        async with opened(client, f"/v1/runs/{run['id']}/events") as stream:
            await stream.take(1)
            begun = time.monotonic()
            process.send_signal(number)
            assert await stream.rest() == []
        assert await process.wait() == 0
        assert time.monotonic() - begun < 5
