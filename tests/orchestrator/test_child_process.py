"""Of a program that was ended nothing is left, whatever it was doing; on uvloop too, as in a worker."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from orchestrator.child_process import end
from tests.waiting import eventually

FLOOD = "import os\nwhile True: os.write(1, bytes(65536)), os.write(2, bytes(65536))"
HEIR = "import subprocess; heir = subprocess.Popen(['sleep', '600']); print(heir.pid, flush=True); heir.wait()"

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def a_flood_is_not_read_to_its_end() -> None:
    process, is_closed = await started(FLOOD)

    async def nothing_is_read() -> bool:
        transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
        pipes: list[Any] = [transport.get_pipe_transport(fd) for fd in (1, 2)]
        return not any(pipe.is_reading() for pipe in pipes)

    await eventually(nothing_is_read, what="both pipes are full")
    assert process.stdin is not None
    process.stdin.write(bytes(1_000_000))  # nobody takes it
    await end(process)
    assert process.returncode == -9
    await eventually(is_closed, within=5, what="our ends of its pipes are closed")


async def a_process_outlives_it_and_holds_its_pipes() -> None:
    process, is_closed = await started(HEIR)
    assert process.stdout is not None
    heir = int(await process.stdout.readline())
    try:
        await end(process)
        await eventually(is_closed, within=5, what="our ends of its pipes are closed")
    finally:
        os.kill(heir, 9)


async def it_ended_by_itself() -> None:
    process, is_closed = await started("pass")
    assert await process.wait() == 0
    await end(process)
    assert process.returncode == 0
    await eventually(is_closed, within=5, what="our ends of its pipes are closed")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "course", [a_flood_is_not_read_to_its_end, a_process_outlives_it_and_holds_its_pipes, it_ended_by_itself]
)
async def test_a_program_that_was_ended_leaves_no_descriptor(course: Callable[[], Awaitable[None]], loop: str) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(limited())

    async def limited() -> None:
        async with asyncio.timeout(30):
            await course()

    await asyncio.to_thread(run)


async def started(code: str) -> tuple[asyncio.subprocess.Process, Callable[[], Awaitable[bool]]]:
    """A Python that executes `code`, and what tells whether all that was opened for it is closed."""
    before = _open()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=1_024
    )
    opened = _open() - before
    assert len(opened) >= 3

    async def is_closed() -> bool:
        return not opened & _open()

    return process, is_closed


def _open() -> set[str]:
    """Pipes and sockets of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the listing's own
            continue
    return {link for link in found if link.startswith(("pipe:", "socket:"))}
