"""The tool `cpython`: real CPython with its whole standard library, in a box made by bubblewrap.

Beside the tool `python`, which is quicker and takes less, for code that needs what that subset lacks. There only where
the operator wants it and bubblewrap is installed.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Annotated, Final

from pydantic import Field

from orchestrator.sandbox.bubblewrap import Bubblewrap
from orchestrator.sandbox.session_files import SEEN, SessionFiles
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.results import clean
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

_AT_ONCE: Final = 2


class CPythonArguments(Arguments):
    """What to run."""

    code: Annotated[str, Field(min_length=1, max_length=100_000, description="Python source; may be several lines")]


class CPythonTool(Tool[CPythonArguments]):
    """Runs code in a box. Two at a time in a worker; further calls wait."""

    name = "cpython"
    arguments = CPythonArguments
    effect = "read"
    retries = 0
    max_result_bytes = 65_536

    def __init__(self, box: Bubblewrap, files: SessionFiles | None) -> None:
        self._box = box
        self._files = files
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.timeout = box.seconds + 60.0  # most of it for waiting while other calls run
        self.description = (
            "Runs Python code with CPython and its whole standard library; returns what it prints, and the value of "
            "its last line if that is an expression. Use it where the tool python can't do it. Every call starts "
            f"afresh. {SEEN if files else 'No files.'} /tmp can be written and is gone after the call. No "
            f"network, no other programs, no packages. Limits: {box.cpu_seconds} s of CPU time, {box.seconds:g} s, "
            f"{box.memory_bytes // 1_048_576} MB of memory."
        )

    async def run(self, arguments: CPythonArguments, context: ToolContext) -> JSONValue:
        needed = self._files.needed_by(arguments.code, context) if self._files else nullcontext()
        async with self._turns, needed as files:
            try:
                ran = await self._box.run(arguments.code, files=files)
            except OSError as error:
                raise ToolFailure(f"The sandbox could not be started ({error.strerror}).", retryable=True) from None
        if ran.late:
            raise ToolFailure(f"The code was ended after {self._box.seconds:g} s: do less in one call.")
        result: dict[str, JSONValue] = {"stdout": clean(ran.stdout)}
        if ran.stderr:
            result["stderr"] = clean(ran.stderr)
        if ran.cut:
            result["note"] = "it printed too much and was ended: print less"
        elif ran.exit_code:
            result["exit_code"] = ran.exit_code
            if ran.exit_code in (137, 152):
                result["note"] = f"it was ended: it may use {self._box.cpu_seconds} s of CPU time"
        return result
