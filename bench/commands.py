"""What a process beside the bench does when it is asked: a JSON object a line, answered with one."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import uvloop

from bench.processes import raise_descriptors

Handler = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]

_LONGEST = 64 * 1_048_576


def serve(**handlers: Handler) -> None:
    """Answers until standard input ends. `do` in a command names its handler; the first line out says `ready`."""
    raise_descriptors()
    gc.set_threshold(200_000, 50, 100)  # a collection within a measurement would be part of it
    uvloop.run(_serve(handlers))


async def _serve(handlers: Mapping[str, Handler]) -> None:
    commands = asyncio.StreamReader(limit=_LONGEST)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say({"ready": True})
    while line := await commands.readline():
        command = orjson.loads(line)
        _say(await handlers[command["do"]](command))


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(answer).decode() + "\n")
    sys.stdout.flush()
