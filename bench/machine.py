"""What the figures were measured on, and how fast that is: figures of two machines compare only beside this."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from bench.http import Connection, Server
from bench.report import Line
from bench.side_process import side_process
from bench.stats import Spread, latency
from bench.subject import Subject

_COMMITS = 200
_ROUND_TRIPS = 300
_WAKES = 200


def describe(data_dir: Path) -> dict[str, str]:
    """The machine in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "machine": f"{_processor()}, {cores} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "data": f"a temporary directory on {_file_system(data_dir)}",
        "load": f"{load} before the bench (over 1, 5 and 15 minutes)",
    }


async def calibrate(subject: Subject) -> list[Line]:
    """Four figures that no code of Longhaul is part of."""
    return [
        Line("a fixed loop in Python", "ms", loop_time()),
        Line("a row committed by Postgres, one at a time", "ms", await _commit_time(subject.database_url)),
        Line("a blocked reader woken through Redis", "ms", await wake_time(subject.redis_url)),
        Line("a request to an empty uvicorn", "ms", await _round_trip_time()),
    ]


def loop_time() -> Spread:
    """A million additions, in ms."""
    return latency(_timed_loop() for _ in range(7))


async def wake_time(redis_url: str) -> Spread:
    """From the push to a list to the return of the blocking pop that waits for it, in ms."""
    times = []
    pushing, popping = Redis.from_url(redis_url), Redis.from_url(redis_url)
    try:
        for _ in range(_WAKES):
            pop = asyncio.ensure_future(popping.blpop(["bench:bell"], timeout=5))
            await asyncio.sleep(0.002)  # until it waits
            began = time.perf_counter()
            await pushing.rpush("bench:bell", b"1")
            await pop
            times.append((time.perf_counter() - began) * 1e3)
    finally:
        await pushing.aclose()
        await popping.aclose()
    return latency(times)


def _timed_loop() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return (time.perf_counter() - began) * 1e3


async def _commit_time(database_url: str) -> Spread:
    times = []
    connection = await asyncpg.connect(database_url)
    try:
        # Not a temporary table: those are not made durable.
        await connection.execute("CREATE SCHEMA bench CREATE TABLE commits (id bigserial PRIMARY KEY, body text)")
        insert = await connection.prepare("INSERT INTO bench.commits (body) VALUES ($1)")
        for _ in range(_COMMITS):
            began = time.perf_counter()
            await insert.fetch("x" * 200)
            times.append((time.perf_counter() - began) * 1e3)
        await connection.execute("DROP SCHEMA bench CASCADE")
    finally:
        await connection.close()
    return latency(times)


async def _round_trip_time() -> Spread:
    async with side_process("bench.bare") as bare:
        server = Server("127.0.0.1", int(bare.said["port"]), "none")
        connection: Connection = await server.connect()
        request = server.request("GET", "/")
        times = []
        for _ in range(_ROUND_TRIPS):
            exchange = await connection.call(request)
            times.append((exchange.ended - exchange.sent) * 1e3)
        connection.close()
    return latency(times)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(path: Path) -> str:
    """Its kind: on tmpfs a commit is not durable, and figures look better than they are."""
    try:
        mounts: Any = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return "unknown file system"
    above = {str(directory) for directory in (path, *path.parents)}
    return str(max((mount for mount in mounts if mount[1] in above), key=lambda mount: len(mount[1]))[2])
