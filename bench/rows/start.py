"""How soon `longhaul dev` serves: on an empty directory, and on one that has been used before."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

from bench.http import BenchFailed
from bench.report import Bound, Line, Section
from bench.stats import Spread, latency
from bench.subject import clean_environment
from cli.embedded import EmbeddedServers
from cli.pidfile import PidFile
from cli.process import Child, ProcessSpec

KEY = "start"
TITLE = "Start of longhaul dev"

_PATIENCE = 30.0
_LOOK_EVERY = 0.005
_STARTS = 3  # further ones


async def measure(directory: Path) -> list[Section]:
    """Starts and stops it on `directory`/dev."""
    data = directory / "dev"
    first = await _start(directory, data)
    further = [await _start(directory, data) for _ in range(_STARTS)]
    return [
        Section(
            KEY,
            TITLE,
            [
                Line(f"to the ready line, directory there ({_STARTS} starts)", "s", latency(further), Bound(5)),
                Line("to the ready line, directory new", "s", Spread(first, first), single=True),
                Line("Postgres and Redis alone, directory there", "s", await _stores(data), single=True),
            ],
        )
    ]


async def _start(directory: Path, data: Path) -> float:
    log = directory / "dev.log"
    log.unlink(missing_ok=True)
    command = Path(sys.executable).with_name("longhaul")
    run = (str(command),) if command.exists() else (sys.executable, "-P", "-c", "from cli.main import main; main()")
    spec = ProcessSpec(
        name="dev",
        argv=(*run, "dev", "--json", "--port", "0", "--data-dir", str(data)),
        env=clean_environment(),
        log=log,
        pid_file=PidFile(directory / "dev.pid"),
        stop_steps=((signal.SIGTERM, 20.0),),
        orphan_signal=signal.SIGTERM,
    )
    began = time.perf_counter()
    child = Child.spawn(spec)
    try:
        while b'{"ready":true' not in log.read_bytes():
            if child.exit_code is not None or time.perf_counter() - began > _PATIENCE:
                raise BenchFailed(f"longhaul dev does not get ready:\n{child.log_tail()}")
            await asyncio.sleep(_LOOK_EVERY)
        elapsed = time.perf_counter() - began
    finally:
        code = await child.stop()
    if code != 0:
        raise BenchFailed(f"longhaul dev ended with exit code {code}:\n{child.log_tail()}")
    return elapsed


async def _stores(data: Path) -> Spread:
    servers = EmbeddedServers(data)
    began = time.perf_counter()
    await servers.start()
    elapsed = time.perf_counter() - began
    await servers.stop()
    return Spread(elapsed, elapsed)
