"""One question to a process that is made for it and ends with it: what it reads may be hostile, and must not be able to
stall or to fill the worker. It gets its task on standard input and answers on standard output, as much as it may.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.child_process import end

_LEAVE_SECONDS: Final = 1.0


async def asked(
    script: Path, task: bytes, *, seconds: float, most_bytes: int, env: Mapping[str, str], folder: Path | None = None
) -> bytes:
    """What `script` answers to `task`, and a little more than `most_bytes` of it at most. No process is left behind:
    it is told to end, and killed a second later.

    Args:
        seconds: from its start to its end.
        env: its whole environment.
        folder: its working directory.

    Raises:
        TimeoutError: it took longer.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", os.fspath(script)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder or "/",
        env=dict(env),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            return await _talk(process, task, most_bytes)
    finally:
        await asyncio.shield(_end(process))


async def _talk(process: asyncio.subprocess.Process, task: bytes, most_bytes: int) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it has ended already, and its output says why
        process.stdin.write(task)
        await process.stdin.drain()
        process.stdin.close()
    output = bytearray()
    while piece := await process.stdout.read(65_536):
        output += piece
        if len(output) > most_bytes:
            break
    return bytes(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Lets it take its leave, for a moment: a server may be told that nobody waits for its answer any more."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await process.wait()
    await end(process)
