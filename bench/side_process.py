"""A process beside the bench. It ends when its standard input does, hence with the bench, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from bench.http import BenchFailed


@dataclass(frozen=True, slots=True)
class SideProcess:
    """`said` is the JSON object it wrote once it was ready."""

    said: Mapping[str, Any]
    _process: Process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Has a process that takes commands (`bench.commands`) do something. Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps({"do": do, **more}) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise BenchFailed(f"a process beside the bench ended when it was to {do}")
        answer: dict[str, Any] = orjson.loads(line)
        return answer


@asynccontextmanager
async def side_process(module: str) -> AsyncIterator[SideProcess]:
    """Runs `python -m <module>` for the time of the block."""
    # In a session of its own, so that Ctrl-C ends the bench first, and that ends it.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module), stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        yield SideProcess(orjson.loads(await _first_line(process, module)), process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output_of(code: str) -> str:
    """What a fresh Python prints that executes `code`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", code), stdout=PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise BenchFailed(f"a process beside it ended with exit code {process.returncode}")
    return output.decode()


async def _first_line(process: Process, module: str) -> bytes:
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            if line := await process.stdout.readline():
                return line
    raise BenchFailed(f"python -m {module} does not start")
