"""Keeps the processes of a stack running: one that ends by itself is started again, after a growing pause."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Protocol

from cli.process import Child, ProcessSpec, end_leftover
from kernel.errors import OperatorError

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0
_STEADY_SECONDS = 30.0  # a process that lived this long starts over with the first pause


class Service(Protocol):
    """Something that runs as a process and can be started again after it ended."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def exit_code(self) -> int | None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def wait(self) -> int: ...


class ProcessService:
    """A program of our own, which tells of its readiness in ways of its own."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self._child: Child | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.exit_code

    async def start(self) -> None:
        await end_leftover(self.spec.pid_file, self.spec.stop_steps)
        self._child = Child.spawn(self.spec)

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
            self._child = None

    async def wait(self) -> int:
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return await self._child.wait()

    def log_tail(self) -> str:
        return "" if self._child is None else self._child.log_tail()


class Supervisor:
    """Watches services that were started, one task for each. Leaves them running when it stops."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, service: Service) -> None:
        self._tasks.append(asyncio.create_task(self._keep(service), name=f"keep {service.name}"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()

    async def _keep(self, service: Service) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = await service.wait()
            if time.monotonic() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            self._say(f"{service.name} ended ({describe(code)}), starting it again in {pause:g} s")
            started = False
            while not started:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                try:
                    await service.start()
                    started = True
                except (OperatorError, OSError) as error:
                    self._say(f"{service.name} does not start, next try in {pause:g} s: {error}")


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
