"""Runs Python code as a process of its own in a box made by bubblewrap.

The box has no network, no environment, no other processes and no files but Python itself, a small /tmp that goes with
it, and what is put below /files. It can't fork, and starts few threads: none where the worker is root, whose processes
no limit counts. Time, CPU, memory, file size and output are bounded, and the whole box dies with its time or with the
worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.child_process import close_pipes, end, kill
from orchestrator.sandbox.seccomp import program

# Limits come first, and can't be raised again. The value of a last line that is an expression is shown, as in a shell.
_RUNNER: Final = """
import ast, resource, sys
memory, cpu, size = map(int, sys.argv[1:4])
for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_FSIZE, size),
                     (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 64),
                     (resource.RLIMIT_STACK, 8 << 20)):
    resource.setrlimit(limit, (value, value))
source = sys.stdin.buffer.read().decode("utf-8", "replace")
sys.argv = ["code"]
tree = compile(source, "<code>", "exec", ast.PyCF_ONLY_AST)
last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
scope = {"__name__": "__main__"}
exec(compile(tree, "<code>", "exec"), scope)
if last is not None:
    value = eval(compile(ast.Expression(last.value), "<code>", "eval"), scope)
    if value is not None:
        print(repr(value))
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it. `exit_code` is negative for a signal; `cut` says that it was ended for printing too much, and
    `late` that its time was over."""

    stdout: str
    stderr: str
    exit_code: int
    cut: bool
    late: bool


class Bubblewrap:
    """Boxes on this machine.

    Args:
        seconds: of the clock, for one run.
        cpu_seconds, memory_bytes, disk_bytes, output_bytes: caps of one run.
    """

    def __init__(
        self,
        *,
        seconds: float = 20.0,
        cpu_seconds: int = 10,
        memory_bytes: int = 512 * 1024 * 1024,
        disk_bytes: int = 64 * 1024 * 1024,
        output_bytes: int = 20_000,
    ) -> None:
        self.seconds = seconds
        self.cpu_seconds = cpu_seconds
        self.memory_bytes = memory_bytes
        self._output_bytes = output_bytes
        self._box = _box(disk_bytes)
        limits = [str(memory_bytes), str(cpu_seconds), str(disk_bytes)]
        self._program = [os.path.realpath(sys.executable), "-I", "-X", "utf8", "-c", _RUNNER, *limits]

    @staticmethod
    def missing() -> str | None:
        """Why there can be no boxes on this machine; None if there can."""
        if sys.platform != "linux" or program() is None:
            return "the sandbox needs Linux on x86-64 or aarch64"
        if shutil.which("bwrap") is None:
            return "the program bwrap is not on the PATH: install the package bubblewrap"
        return None

    async def run(self, code: str, *, files: Path | None = None) -> Ran:
        """Runs `code` with the directory `files`, if any, readable as /files.

        Raises:
            OSError: bubblewrap could not be started.
        """
        filter_end = await asyncio.to_thread(_filter)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(filter_end, files),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                pass_fds=(filter_end,),
                start_new_session=True,
            )
        finally:
            os.close(filter_end)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(self.seconds) as clock:
                out, err, _ = await asyncio.gather(
                    self._read(process.stdout, process), self._read(process.stderr, process), _feed(process.stdin, code)
                )
                exit_code = await process.wait()
        except TimeoutError:
            if not clock.expired():
                raise
            return Ran("", "", -signal.SIGKILL, cut=False, late=True)
        finally:
            await end(process)
        return Ran(
            out.decode(errors="replace"),
            err.decode(errors="replace"),
            exit_code,
            cut=len(out) >= self._output_bytes or len(err) >= self._output_bytes,
            late=False,
        )

    async def _read(self, stream: asyncio.StreamReader, process: asyncio.subprocess.Process) -> bytes:
        """As much as is taken; more ends the box."""
        taken = bytearray()
        while data := await stream.read(65_536):
            taken += data
            if len(taken) >= self._output_bytes:
                kill(process)
                close_pipes(process)  # else the process would not count as ended until all it wrote is read
                break
        return bytes(taken[: self._output_bytes])

    def _command(self, filter_fd: int, files: Path | None) -> list[str]:
        shown = [] if files is None else ["--ro-bind", str(files), "/files"]
        rest = ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(filter_fd), "--"]  # noqa: S108
        return [*self._box, *shown, *rest, *self._program]


def _box(disk_bytes: int) -> list[str]:
    """The command that makes the box, but for what differs from call to call."""
    command = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "box"]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    command += ["--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp"]  # noqa: S108
    for folder in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        else:
            command += ["--ro-bind-try", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    shown = python if prefix == "/usr" else prefix
    size = ["--size", str(disk_bytes), "--tmpfs"]
    command += ["--ro-bind", shown, shown, "--proc", "/proc", "--dev", "/dev"]
    return [*command, *size, "/dev/shm", *size, "/tmp", "--remount-ro", "/dev"]  # noqa: S108


def _filter() -> int:
    """A descriptor that the system call filter can be read from."""
    filter_end, our_end = os.pipe()
    try:
        os.write(our_end, program(threads=os.geteuid() != 0) or b"")  # fits into the pipe's buffer
    finally:
        os.close(our_end)
    return filter_end


async def _feed(stream: asyncio.StreamWriter, code: str) -> None:
    with contextlib.suppress(ConnectionError):
        stream.write(code.encode(errors="replace"))
        await stream.drain()
        stream.close()
