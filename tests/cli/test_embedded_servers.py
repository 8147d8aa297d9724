"""The embedded servers start on any directory, keep what was committed, and survive being killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from cli.embedded import EmbeddedServers
from cli.errors import AlreadyRunning, BadData
from cli.pidfile import start_time
from cli.process import until

_HOLD = """
import asyncio, sys
from pathlib import Path
from cli.embedded import EmbeddedServers

async def main():
    servers = EmbeddedServers(Path(sys.argv[1]))
    await servers.start()
    print(servers.postgres.pid, servers.redis.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def _write(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE kept (word text)")
    await connection.execute("INSERT INTO kept VALUES ('still here')")
    await connection.close()


async def _read(database_url: str) -> str:
    connection = await asyncpg.connect(database_url)
    try:
        return str(await connection.fetchval("SELECT word FROM kept"))
    finally:
        await connection.close()


async def test_both_servers_answer_and_rows_outlive_a_restart(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir) as servers:
        url = servers.database_url
        await _write(url)
        redis = Redis.from_url(servers.redis_url)
        assert (await redis.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        assert (await redis.config_get("save"))["save"] == ""
        await redis.aclose()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await connection.execute("CREATE EXTENSION vector")
        assert await connection.fetchval("SELECT '[1,2]'::vector <-> '[1,4]'::vector") == 2.0
        await connection.close()
    async with EmbeddedServers(data_dir) as servers:
        assert servers.database_url == url
        assert await _read(url) == "still here"


async def test_a_server_that_was_killed_starts_again_at_the_same_address(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir) as servers:
        await _write(servers.database_url)
        await asyncio.gather(servers.postgres.kill(), servers.redis.kill())
        await asyncio.gather(servers.postgres.start(), servers.redis.start())
        assert await _read(servers.database_url) == "still here"
        redis = Redis.from_url(servers.redis_url)
        assert await redis.ping()
        await redis.aclose()


async def test_servers_die_with_a_killed_parent_and_start_again_on_its_directory(
    data_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = start_python(_HOLD, str(data_dir))
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    if sys.platform == "linux":
        async with asyncio.timeout(10):
            await until(lambda: not any(start_time(pid) for pid in pids))
    async with EmbeddedServers(data_dir) as servers:
        await _write(servers.database_url)
        assert await _read(servers.database_url) == "still here"


async def test_lock_files_that_name_a_strangers_process_do_not_stop_postgres(
    data_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    stranger = start_python("input()")
    async with EmbeddedServers(data_dir) as servers:
        await servers.postgres.kill()
        _rename_holder(data_dir / "postgres" / "postmaster.pid", stranger.pid)
        await servers.postgres.start()
    assert stranger.poll() is None


def _rename_holder(lock: Path, pid: int) -> None:
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(pid), *lines[1:]]) + "\n")


async def test_a_long_path_or_one_with_blanks_still_gives_usable_addresses(data_dir: Path) -> None:
    for name in ("with a blank", "long" * 30):
        async with EmbeddedServers(data_dir / name) as servers:
            await _write(servers.database_url)
            redis = Redis.from_url(servers.redis_url)
            assert await redis.ping()
            await redis.aclose()
            for url in (servers.database_url, servers.redis_url):
                assert " " not in url
                assert "%" not in url
            sockets = servers.redis_url.removeprefix("unix://").removesuffix("/redis.sock")
        assert not os.path.exists(sockets), "the short directory goes with the server"  # noqa: ASYNC240


async def test_two_at_once_on_one_directory_are_refused(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir):
        with pytest.raises(AlreadyRunning, match=f"Process {os.getpid()} already uses"):
            await EmbeddedServers(data_dir).start()


async def test_a_cluster_of_another_version_is_named_and_left_alone(data_dir: Path) -> None:
    cluster = data_dir / "postgres"
    cluster.mkdir()
    (cluster / "PG_VERSION").write_text("15\n")
    with pytest.raises(BadData, match="made by Postgres 15"):
        await EmbeddedServers(data_dir).start()
    assert (cluster / "PG_VERSION").read_text() == "15\n"


async def test_a_directory_that_cannot_be_made_is_named(data_dir: Path) -> None:
    (data_dir / "file").write_text("")
    with pytest.raises(BadData, match="Can't use"):
        await EmbeddedServers(data_dir / "file" / "below").start()


async def test_stopping_ends_the_processes(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir) as servers:
        pids = [servers.postgres.pid, servers.redis.pid]
    assert all(pid is not None and start_time(pid) == "" for pid in pids)
    assert servers.postgres.pid is None
    assert not list((data_dir / "run").glob("*.pid"))


async def test_a_server_that_is_stopped_dead_is_ended_all_the_same(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir) as servers:
        pid = servers.redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await servers.redis.kill()
        assert start_time(pid) == ""
