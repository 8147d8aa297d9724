"""Takes documents apart in child processes, so that no file can hurt the worker: each has its own memory, computing
time and clock, and is killed beyond them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson

from memory.documents.formats import Format
from memory.documents.passages import Passage
from memory.documents.refusals import DocumentRefused

_MIB: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """What one document may cost: bytes of memory, seconds of computing, seconds on the clock; and how much may come of
    it."""

    memory_bytes: int = 1_024 * _MIB
    cpu_seconds: int = 60
    seconds: float = 180.0
    passages: int = 20_000
    characters: int = 20_000_000

    @property
    def output_bytes(self) -> int:
        """Bytes of the answer, at most: four to a character, and some more for each passage."""
        return 4 * self.characters + 4_096 * self.passages


@dataclass(frozen=True, slots=True)
class Reading:
    """A document that has been taken apart. `facts` may hold pages, pages_without_text, title, encoding, rows, columns,
    characters."""

    facts: Mapping[str, Any]
    passages: list[Passage]


async def read_document(data: bytes, kind: Format, charset: str | None, limits: ParserLimits) -> Reading:
    """The passages of a document.

    Args:
        charset: what the caller says that text is encoded in.

    Raises:
        DocumentRefused: it can't be read, or costs more than `limits`.
    """
    task = {
        "format": kind,
        "charset": charset,
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": limits.cpu_seconds,
        "most_passages": limits.passages,
        "most_characters": limits.characters,
    }
    clock = asyncio.timeout(limits.seconds)
    try:
        async with clock, _child() as process:
            return await _converse(process, orjson.dumps(task) + b"\n", data, limits)
    except TimeoutError:
        if not clock.expired():
            raise
        raise DocumentRefused("too_costly", f"Reading the document took longer than {limits.seconds:g} s.") from None


async def _converse(process: Process, task: bytes, data: bytes, limits: ParserLimits) -> Reading:
    assert process.stdout is not None
    sending = asyncio.create_task(_send(process, task, data), name="document-to-child")
    try:
        lines: list[dict[str, Any]] = []
        size = 0
        while line := await process.stdout.readline():
            size += len(line)
            if size > limits.output_bytes:
                raise DocumentRefused("too_long", "The document has too much text.")
            if not line.endswith(b"\n"):
                break  # it died while it wrote
            lines.append(orjson.loads(line))
        code = await process.wait()
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    head = lines[0] if lines else {}
    if "refused" in head:
        raise DocumentRefused(head["refused"], head["message"], suggestions=head["suggestions"])
    if code != 0 or head.get("passages") != len(lines) - 1:
        # Killed at a limit; or memory was not to be had where a library can't say so.
        what = f"a signal ({-code})" if code < 0 else f"exit code {code}"
        raise DocumentRefused(
            "too_costly",
            f"Reading the document needs more than {limits.cpu_seconds} s of computing or "
            f"{limits.memory_bytes // _MIB} MB of memory: its reader ended with {what}.",
            suggestions=("split it into several documents",),
        )
    return Reading(head["facts"], [Passage(line["text"], line["context"], line["page"]) for line in lines[1:]])


async def _send(process: Process, task: bytes, data: bytes) -> None:
    """The child may end before it has read all."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(task)
        view = memoryview(data)
        for start in range(0, len(data), _MIB):
            process.stdin.write(view[start : start + _MIB])
            await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


@asynccontextmanager
async def _child() -> AsyncIterator[Process]:
    """A fresh interpreter with nothing of our environment. Gone when the block ends, and no pipe of it is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "memory.documents.child"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
        cwd="/",
        limit=4 * _MIB,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        _close_pipes(process)
        await asyncio.shield(process.wait())


def _close_pipes(process: Process) -> None:
    """What nobody reads on does not close by itself."""
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
    stdin: Any = transport.get_pipe_transport(0)
    if stdin is not None and not stdin.is_closing():
        stdin.abort()
    stdout = transport.get_pipe_transport(1)
    if stdout is not None:
        stdout.close()
