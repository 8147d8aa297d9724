"""The whole of Longhaul on one machine: servers, the rehearsal model, one API process and workers.

What the environment names (DATABASE_URL, REDIS_URL, OPENAI_BASE_URL or OPENAI_API_KEY) is used as it is; for
the rest a process is started on the data directory. All are children of this process, configured by their
environment alone, end with it, and one that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cli import programs, state
from cli.database import prepared_api_key
from cli.embedded.directory import DataDirectory
from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.redis import EmbeddedRedis
from cli.errors import AlreadyRunning, ProcessFailed
from cli.lock import DirectoryLock
from cli.pidfile import PidFile
from cli.process import end_leftover
from cli.ready import Readiness
from cli.supervisor import ProcessService, Service, Supervisor, describe

_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """`port` 0 takes a free one. `environment` is what the processes inherit, and where stores and model are named."""

    data_dir: Path
    environment: Mapping[str, str]
    port: int = 0
    workers: int = 1


class Stack:
    """`async with Stack(options, say) as stack: …` runs it for the time of the block. `say` gets progress lines.

    `url`, `api_key`, `database_url` and `redis_url` are valid once it has started.
    """

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        self.data = DataDirectory(options.data_dir.resolve())
        self.url = ""
        self.api_key = ""
        self.database_url = options.environment.get("DATABASE_URL", "")
        self.redis_url = options.environment.get("REDIS_URL", "")
        self.rehearsal = not (options.environment.get("OPENAI_BASE_URL") or options.environment.get("OPENAI_API_KEY"))
        self._options = options
        self._say = say
        self._lock = DirectoryLock(self.data.path)
        self._supervisor = Supervisor(say)
        self._stores: list[Service] = []
        self._programs: list[ProcessService] = []

    async def start(self) -> None:
        """Starts everything that is missing and returns when the API is ready and every worker is with it.

        Raises ProcessFailed, ServerMissing, BadData, AlreadyRunning of cli.errors; nothing runs afterwards then.
        """
        self.data.create()
        self._lock.acquire()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends in order: the API and the workers hand back what they hold, then the stores close."""
        state.forget_running(self.data.path)
        await self._supervisor.stop()
        await asyncio.gather(*(program.stop() for program in self._programs))
        await asyncio.gather(*(store.stop() for store in self._stores))
        self._programs.clear()
        self._stores.clear()
        self._lock.release()

    def pids(self) -> dict[str, int]:
        """The running processes by name: postgres, redis, rehearsal, api, worker-1, …"""
        services: list[Service] = [*self._stores, *self._programs]
        return {service.name: service.pid for service in services if service.pid is not None}

    async def _start(self) -> None:
        options = self._options
        await self._clear_leftovers()
        port = _port(options.port)
        environment = programs.base_environment(options.environment, self.data, port)
        if self.rehearsal:
            model_port = _port(0)
            environment |= programs.rehearsal_environment(model_port)
            await self._launch(programs.rehearsal(self.data, environment, model_port))
        await self._start_stores()
        environment |= {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        await self._prepare_database()
        await self._launch(programs.api(self.data, environment))
        for number in range(1, options.workers + 1):
            await self._launch(programs.worker(self.data, environment, number))
        host = environment["LONGHAUL_HOST"]
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
        await self._until_ready()
        for service in (*self._stores, *self._programs):
            self._supervisor.watch(service)
        running = state.RunningStack(self.url, self.api_key, self.database_url, self.redis_url)
        state.write_running(self.data.path, running)

    async def _clear_leftovers(self) -> None:
        """Ends what a stack on this directory left when it was killed; Postgres and Redis see to their own."""
        leftovers = [PidFile(path) for path in _files(self.data.run, "*.pid")]
        ended = await asyncio.gather(
            *(
                end_leftover(file, ())
                for file in leftovers
                if file.path.stem not in (EmbeddedPostgres.name, EmbeddedRedis.name)
            )
        )
        if any(ended):
            self._say(f"ended {sum(ended)} processes that a killed stack had left behind")
        for log in _files(self.data.logs, "*.log"):
            log.unlink()

    async def _start_stores(self) -> None:
        postgres = None if self.database_url else EmbeddedPostgres(self.data, self._say)
        redis = None if self.redis_url else EmbeddedRedis(self.data)
        self._stores = [store for store in (postgres, redis) if store is not None]
        for outcome in await asyncio.gather(*(store.start() for store in self._stores), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        if postgres is not None:
            self.database_url = postgres.url
        if redis is not None:
            self.redis_url = redis.url

    async def _prepare_database(self) -> None:
        """Brings the schema up to date; makes the development org and its key, once."""
        self.api_key = await prepared_api_key(self.database_url, state.read_api_key(self.data.path), self._say)
        state.write_api_key(self.data.path, self.api_key)

    async def _launch(self, program: ProcessService) -> None:
        self._programs.append(program)
        await program.start()

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        async with Readiness(self.url) as readiness:
            while True:
                for program in self._programs:
                    if program.exit_code is not None:
                        raise ProcessFailed(
                            f"{program.name} ended ({describe(program.exit_code)}) while the stack was starting; "
                            f"the end of {program.spec.log}:\n{program.log_tail()}"
                        )
                missing = await readiness.missing(self._options.workers)
                if missing is None:
                    return
                if time.monotonic() > deadline:
                    logs = "\n".join(f"{p.name}:\n{p.log_tail()}" for p in self._programs)
                    raise ProcessFailed(f"The stack is not ready after {_READY_SECONDS:g} s: {missing}.\n{logs}")
                await asyncio.sleep(0.03)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _files(directory: Path, pattern: str) -> list[Path]:
    return sorted(directory.glob(pattern))


def _port(wanted: int) -> int:
    """`wanted` if it is free, or any free port for 0. Raises AlreadyRunning."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise AlreadyRunning(
                f"Port {wanted} is taken: {error.strerror}.",
                suggestions=("choose another with --port", "--port 0 takes a free one"),
            ) from error
        port: int = probe.getsockname()[1]
        return port
