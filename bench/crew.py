"""Workers that may die: the stack's and two more, each started again when it ends. Nothing else is sent a signal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from signal import Signals
from types import TracebackType
from typing import Any, Self

import asyncpg

from bench.http import BenchFailed
from bench.subject import Subject
from cli.supervisor import ProcessService

FURTHER = 2
_LOOK_EVERY = 0.01


class Crew:
    """`async with` starts the further workers, and ends them. A worker is named as its runs' events name it."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._further = [subject.further_worker(number) for number in range(2, 2 + FURTHER)]
        self._keepers: list[asyncio.Task[None]] = []
        self._database: Any = None

    async def __aenter__(self) -> Self:
        self._database = await asyncpg.connect(self._subject.database_url)
        for worker in self._further:
            await worker.start()
            self._keepers.append(asyncio.create_task(_keep(worker)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._further))
        await self._database.close()

    def send(self, worker: str, number: Signals) -> None:
        """Sends it a signal. Raises BenchFailed if it is none of ours."""
        pid = _pid(worker)
        if pid not in self._pids():
            raise BenchFailed(f"{worker} is no worker of this bench")
        os.kill(pid, number)

    async def until_served(self, seconds: float) -> None:
        """Returns when the workers are all there, and the server has been up for so long."""

        async def served() -> bool:
            return (
                await self._seen(self._pids()) == 1 + FURTHER
                and await self._value("SELECT extract(epoch FROM now() - pg_postmaster_start_time())") > seconds
            )

        await until(served, seconds + 10, "the workers get ready")

    async def until_not_alone(self, worker: str) -> None:
        """Returns when another worker is there, too."""

        async def accompanied() -> bool:
            return await self._seen(self._pids() - {_pid(worker)}) > 0

        await until(accompanied, 20, "another worker gets ready")

    async def silence(self, worker: str) -> float:
        """Seconds since it renewed its leases and told that it lives."""
        seconds = await self._value(
            "SELECT extract(epoch FROM clock_timestamp() - seen_at) FROM workers WHERE id = $1", worker
        )
        return float(seconds)

    def _pids(self) -> set[int]:
        return {self._subject.pids["worker"], *(worker.pid for worker in self._further if worker.pid is not None)}

    async def _seen(self, pids: set[int]) -> int:
        return int(await self._value("SELECT count(*) FROM workers WHERE pid = ANY ($1)", list(pids)))

    async def _value(self, query: str, *arguments: Any) -> Any:
        value = await self._database.fetchval(query, *arguments)
        if value is None:
            raise BenchFailed(f"no worker {arguments} on the list of the living")
        return value


async def until(condition: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Looks every 10 ms. Raises BenchFailed if it does not come true in time."""
    deadline = time.perf_counter() + seconds
    while not await condition():
        if time.perf_counter() > deadline:
            raise BenchFailed(f"it takes more than {seconds:g} s until {what}")
        await asyncio.sleep(_LOOK_EVERY)


async def _keep(worker: ProcessService) -> None:
    """Starts it again at once, unlike the supervisor of the stack, who would let the bench wait ever longer."""
    while True:
        await worker.wait()
        await worker.start()


def _pid(worker: str) -> int:
    return int(worker.rpartition(":")[2])
