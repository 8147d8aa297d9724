"""The tool `python`: runs code that a model wrote, on pydantic-monty.

Monty is an interpreter of its own, with no way to files, network, environment or processes, running in a separate
process under caps of CPU time, memory, recursion and output. Every call gets a fresh session.

A call occupies a thread for as long as the code runs. Cancelling a call returns at once; its code may go on in the
background until the CPU limit ends it, and holds its thread and process until then.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from weakref import WeakValueDictionary

from pydantic import Field

from orchestrator.sandbox.session_files import MOUNTED, SEEN, SessionFiles
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.preview import preview
from orchestrator.tools.results import clean
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

if TYPE_CHECKING:
    from pydantic_monty import CollectString, Monty, MontyError, MountDir

MODULES: Final = (
    *("asyncio", "base64", "binascii", "bisect", "collections", "copy", "csv", "dataclasses", "datetime"),
    *("decimal", "functools", "hashlib", "itertools", "json", "math", "random", "re", "time", "tomllib"),
    *("typing", "unicodedata"),
)
"""The standard modules worth naming to a model: those that work without files and an operating system."""

_RECYCLE_AFTER: Final = 1_000  # sessions of one process
_KILL_AFTER: Final = 5.0  # seconds over the CPU limit, for code that never comes to a checkpoint
_VALUE_CHARACTERS: Final = 12_000
_ERROR_CHARACTERS: Final = 6_000


class PythonArguments(Arguments):
    """What to run."""

    code: Annotated[str, Field(min_length=1, max_length=100_000, description="Python source; may be several lines")]


class PythonTool(Tool[PythonArguments]):
    """Runs code in the sandbox. Starts nothing, and imports nothing heavy, before the first call.

    Args:
        processes: sandboxes that run at once; further calls wait.
        cpu_seconds: of one call.
        memory_bytes: heap of one call.
        output_bytes: cap on what one call prints.
        files: those of sessions, for code to read; None: it can read none.
    """

    name = "python"
    arguments = PythonArguments
    effect = "read"
    retries = 0
    max_result_bytes = 65_536

    def __init__(
        self,
        *,
        processes: int = 2,
        cpu_seconds: float = 5.0,
        memory_bytes: int = 64 * 1024 * 1024,
        recursion: int = 400,
        output_bytes: int = 20_000,
        files: SessionFiles | None = None,
    ) -> None:
        self._files = files
        self._processes = processes
        self._cpu_seconds = cpu_seconds
        self._memory_bytes = memory_bytes
        self._recursion = recursion
        self._output_bytes = output_bytes
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="python-tool")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._opening = threading.Lock()
        self._pool: Monty | None = None
        self.timeout = cpu_seconds + 25.0  # most of it for waiting while other calls run
        self.description = (
            "Runs Python code and returns what it prints (`stdout`) and the value of its last line if that is an "
            "expression (`value`). Use it to calculate, count, sort, parse and check. Every call starts afresh: "
            "nothing is remembered. It is a subset of Python 3: functions, closures, comprehensions, f-strings, "
            "match, try/except, with, async/await, dataclasses and plain classes work; class inheritance (so no "
            "own exceptions or enums), property/classmethod/staticmethod, yield, del, import * and third-party "
            "packages do not. Generator expressions are evaluated at once, so loop over an endless iterator "
            f"instead. Modules: {', '.join(MODULES)}. {SEEN if files else 'No files.'} No network, environment "
            f"variables, processes or input(); sleeping returns at once. Limits: {cpu_seconds:g} s of CPU time, "
            f"{memory_bytes // 1_048_576} MB of memory, {output_bytes} bytes of output."
        )

    async def run(self, arguments: PythonArguments, context: ToolContext) -> JSONValue:
        # One call at a time for each run: a run that asks for a hundred does not keep the others waiting.
        turn = self._turns.setdefault(context.run_id, asyncio.Lock())
        loop = asyncio.get_running_loop()
        async with turn:
            if self._files is None:
                return await loop.run_in_executor(self._threads, self._execute, arguments.code, None)
            async with self._files.needed_by(arguments.code, context) as folder:
                return await loop.run_in_executor(self._threads, self._execute, arguments.code, folder)

    async def aclose(self) -> None:
        """Ends the processes, after the calls that still run: at most the CPU limit and a few seconds."""
        await asyncio.to_thread(self._close)

    def _execute(self, code: str, files: Path | None) -> JSONValue:
        # pydantic-monty takes 18 MB and 0.1 s to import: not before it is needed, and not on the event loop.
        from pydantic_monty import CollectString, MountDir

        with ExitStack() as stack:
            mount: MountDir | None = None
            if files is not None:
                mount = stack.enter_context(MountDir(host_path=files, virtual_path=MOUNTED, mode="read-only"))
            return self._feed(code, CollectString(max_bytes=self._output_bytes), mount)

    def _feed(self, code: str, printed: CollectString, mount: MountDir | None) -> JSONValue:
        from pydantic_monty import MontyError

        try:
            with self._open().checkout(
                limits={
                    "max_feed_duration_secs": self._cpu_seconds,
                    "max_memory": self._memory_bytes,
                    "max_recursion_depth": self._recursion,
                },
                os_policy={"sleep": "zero"},
            ) as session:
                try:
                    value = session.feed_run(code, print_callback=printed, mount=mount)
                except (TypeError, ValueError, OverflowError) as error:
                    # A value that cannot exist out here, such as a dict keyed by instances of the code's classes.
                    raise ToolFailure(
                        f"The last value cannot be returned ({error}): print it instead.\n{_also(printed.output)}"
                    ) from None
        except MontyError as error:
            raise self._failure(error, printed.output) from None
        result: dict[str, JSONValue] = {}
        if printed.output:
            result["stdout"] = printed.output
        if value is not None or not printed.output:
            result["value"] = preview(value, _VALUE_CHARACTERS)
        return result

    def _failure(self, error: MontyError, output: str) -> ToolFailure:
        """The error as the model should read it: a Python traceback, or which limit was reached."""
        from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

        if isinstance(error, MontyCrashedError):
            text = "The sandbox had to be stopped: the code needs too much memory, nesting or time."
        elif isinstance(error, MontyRuntimeError | MontySyntaxError):
            text = error.display()
            if isinstance(error.exception(), MemoryError) and f"> {self._output_bytes} bytes" in text:
                text = f"The code printed more than {self._output_bytes} bytes: print less."
        else:
            text = str(error)
        if len(text) > _ERROR_CHARACTERS:
            half = _ERROR_CHARACTERS // 2
            text = f"{text[:half]}\n…\n{text[-half:]}"
        return ToolFailure(f"{text}\n{_also(output)}".rstrip())

    def _open(self) -> Monty:
        from pydantic_monty import Monty

        with self._opening:
            if self._pool is None:
                pool = Monty(
                    min_processes=1,
                    max_processes=self._processes,
                    request_timeout=self._cpu_seconds + _KILL_AFTER,
                    max_checkouts_per_worker=_RECYCLE_AFTER,
                )
                pool.__enter__()
                self._pool = pool
            return self._pool

    def _close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._pool is not None:
            self._pool.__exit__(None, None, None)
            self._pool = None


def _also(output: str) -> str:
    return f"Printed before that:\n{clean(output[:4_000])}" if output else ""
