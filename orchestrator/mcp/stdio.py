"""A server that is a program: one JSON-RPC message a line, over its stdin and stdout. Needs the mcp package.

What always holds: the program sees no environment of the worker's beyond what finding programs takes; it leads a
process group of its own and ends with the session, and with the worker however that ends; a line has a cap; what it
writes to stderr is logged up to a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, jsonrpc_message_adapter

from orchestrator.child_process import close_pipes
from orchestrator.mcp.faults import Faults
from orchestrator.tools.errors import ToolFailure

log = structlog.get_logger(__name__)

MAX_LINE: Final = 8 * 1024 * 1024
_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_MAX_SKIPPED: Final = 256 * 1024 * 1024
_LINES_LOGGED: Final = 100
_LONGEST_LOGGED: Final = 300
_STEPS: Final = ((None, 2.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0))
_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,15})\s*[,}]')


@asynccontextmanager
async def stdio_streams(
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    faults: Faults,
    on_lost: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """Starts the program; the two message streams of a session with it. It has ended when the block has.

    Raises:
        OSError: it can't be started.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=get_default_environment() | dict(env),
        start_new_session=True,
        limit=MAX_LINE // 2,  # the buffer holds twice as much
    )
    to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_server, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    link = _Link(name, process, faults, on_lost)
    tasks = [
        asyncio.create_task(link.read(to_session)),
        asyncio.create_task(link.write(from_session)),
        asyncio.create_task(link.log_stderr()),
    ]
    try:
        async with to_session, from_server, to_server, from_session:
            yield from_server, to_server
    finally:
        try:
            await _end(process, _STEPS[-1:] if link.flooded else _STEPS)
        finally:
            _signal(process, signal.SIGKILL)
            for task in tasks:
                task.cancel()
            close_pipes(process)
            await asyncio.gather(*tasks, return_exceptions=True)


class _Link:
    def __init__(self, name: str, process: Process, faults: Faults, on_lost: Callable[[str], None]) -> None:
        self._name = name
        self._process = process
        self._faults = faults
        self._on_lost = on_lost
        self.flooded = False

    async def read(self, to_session: anyio.abc.ObjectSendStream[SessionMessage | Exception]) -> None:
        """Hands on every message; at the end of stdout, or when the program floods it, the session is over."""
        why = "its program has ended"
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async with to_session:
                while True:
                    line, length = await _line(stdout)
                    if length > _MAX_SKIPPED:
                        why, self.flooded = "its program writes without end", True
                        break
                    if not line:
                        break
                    message = self._message(line, length)
                    if message is not None:
                        await to_session.send(SessionMessage(message))
        self._on_lost(why)
        # What it still has to say is read and dropped: an end is only noticed once its pipes are empty.
        while await stdout.read(1024 * 1024):
            pass

    def _message(self, line: bytes, length: int) -> Any:
        if length <= MAX_LINE:
            try:
                return jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:
                what = "a line that is no message in JSON-RPC"
        else:
            what = f"more than {MAX_LINE // 1_048_576} MiB"
        answered = _ID.search(line[:256]) if line.lstrip()[:1] == b"{" else None
        if answered is None:  # programs print all sorts of things
            if line.strip():
                log.warning("mcp_server_line_dropped", server=self._name, bytes=length)
            return None
        failure = ToolFailure(f"The MCP server {self._name!r} sent {what}, not an answer to the call.", retryable=True)
        error = ErrorData(code=-32000, message=self._faults.leave(failure))
        return JSONRPCError(jsonrpc="2.0", id=int(answered[1]), error=error)

    async def write(self, from_session: anyio.abc.ObjectReceiveStream[SessionMessage]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            async with from_session:
                async for message in from_session:
                    stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                    await stdin.drain()
        except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._on_lost("its program reads nothing any more")

    async def log_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        logged, rest = 0, b""
        while chunk := await stderr.read(8_192):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LOGGED:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if logged < _LINES_LOGGED and line.strip():
                    text = line[:_LONGEST_LOGGED].decode(errors="replace")
                    log.info("mcp_server_stderr", server=self._name, pid=self._process.pid, line=text)
                    logged += 1
                    if logged == _LINES_LOGGED:
                        log.warning("mcp_server_stderr_cut", server=self._name, pid=self._process.pid)
        if rest.strip() and logged < _LINES_LOGGED:
            log.info("mcp_server_stderr", server=self._name, pid=self._process.pid, line=rest.decode(errors="replace"))


async def _line(stdout: asyncio.StreamReader) -> tuple[bytes, int]:
    """The next line and its length. Of one that is longer than the cap only the beginning; empty at the end."""
    kept, length = b"", 0
    while True:
        try:
            part = await stdout.readuntil(b"\n")
            ended = True
        except asyncio.IncompleteReadError as error:
            part, ended = error.partial, True
        except asyncio.LimitOverrunError as error:
            part, ended = await stdout.read(error.consumed), False
        length += len(part)
        kept = kept + part if length <= MAX_LINE else kept[:256] or part[:256]
        if ended or length > _MAX_SKIPPED:
            return kept, length


async def _end(process: Process, steps: Sequence[tuple[signal.Signals | None, float]]) -> None:
    """Closes the program's stdin, and if that does not end it, tells its process group, ever more firmly."""
    if process.stdin is not None:
        process.stdin.close()
    for number, seconds in steps:
        if number is not None:
            _signal(process, number)
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
                return
        except TimeoutError:
            continue
    log.error("mcp_server_does_not_end", pid=process.pid)


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
