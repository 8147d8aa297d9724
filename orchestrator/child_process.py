"""The end of a program that a worker has started: after it neither the process nor a descriptor of ours is left.

A process that is killed does not close our ends of its pipes. They close by themselves at the end of what it wrote,
which is never come to when nobody reads on (it was ended for writing too much), or while a process that it started
holds the other end. So they are closed here.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from typing import Any


async def end(process: Process) -> None:
    """Kills it unless it has ended, closes our ends of its pipes, and waits until it is gone."""
    kill(process)
    close_pipes(process)
    await asyncio.shield(process.wait())


def kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def close_pipes(process: Process) -> None:
    """Closes our ends. What was not yet written or read is dropped."""
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
    stdin: Any = transport.get_pipe_transport(0)
    if stdin is not None and not stdin.is_closing():
        stdin.abort()  # `close` would first wait until all is written
    for number in (1, 2):
        pipe = transport.get_pipe_transport(number)
        if pipe is not None:
            pipe.close()
