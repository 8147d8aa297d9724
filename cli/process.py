"""One operating-system process of the stack: spawned, watched, ended.

What always holds: a child leads its own process group, so Ctrl-C in the terminal reaches only the supervisor;
and it dies with the supervisor, on Linux by the kernel, elsewhere at the next start through its pid file.

Spawn from the main thread: Linux counts the end of the spawning *thread* as the parent's death.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.pidfile import PidFile

_LAUNCH = Path(__file__).with_name("launch.py")

StopSteps = tuple[tuple[signal.Signals, float], ...]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to start one process and how to end it.

    `stop_steps` are signals with the seconds to wait after each; SIGKILL to the whole group follows the last.
    `orphan_signal` is what the kernel sends it when the supervisor dies. `user` is (uid, gid) to run as.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    pid_file: PidFile
    cwd: Path | None = None
    user: tuple[int, int] | None = None
    stop_steps: StopSteps = ((signal.SIGTERM, 10.0),)
    orphan_signal: signal.Signals = signal.SIGKILL


class Child:
    """A running process of ours. Its output goes to the end of its log file."""

    def __init__(self, spec: ProcessSpec, popen: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self._popen = popen

    @classmethod
    def spawn(cls, spec: ProcessSpec) -> Child:
        user = "-" if spec.user is None else f"{spec.user[0]}:{spec.user[1]}"
        launcher = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(int(spec.orphan_signal))]
        with spec.log.open("ab") as log:
            popen = subprocess.Popen(
                [*launcher, user, *spec.argv],
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        spec.pid_file.write(popen.pid)
        return cls(spec, popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: self._popen.poll() is not None)
        self.spec.pid_file.remove()
        return self._popen.returncode

    async def stop(self) -> int:
        """Ends it as its spec says. Its exit code."""
        for step, seconds in self.spec.stop_steps:
            if self.exit_code is None:
                self._popen.send_signal(step)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await self.wait()
        return await self.kill()

    async def kill(self) -> int:
        """SIGKILL to its whole process group, at once."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.kill()
        return await self.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log, at most 8 KB."""
        with self.spec.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])


async def end_leftover(pid_file: PidFile, steps: StopSteps) -> bool:
    """Ends the process that a killed supervisor left behind. Returns whether there was one."""
    process = pid_file.leftover()
    if process is None:
        return False
    for step, seconds in (*steps, (signal.SIGKILL, 5.0)):
        if not process.is_alive():
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, step)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await until(lambda: not process.is_alive())
    pid_file.remove()
    return True


async def until(condition: Callable[[], bool], every: float = 0.02) -> None:
    """Returns once `condition` holds. For what sends no signal: other processes and their files."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(every)
