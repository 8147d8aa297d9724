"""Real processes of ours on loopback: the API and workers, as many as a test wants.

A stack stands on a database of its own, so its workers claim nobody else's runs. The session's one stack serves
most tests; a test that kills, stops or starves processes makes its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import aiohttp
import asyncpg

from cli.embedded.directory import DataDirectory
from cli.process import Child, ProcessSpec
from kernel.postgres import Pool, open_pool
from tests.waiting import eventually

_LONGEST_FAREWELL = 15.0

SECRET_KEY = "the-key-that-signs-stream-tokens-in-tests"


class Program:
    """One API or worker process."""

    def __init__(self, name: str, child: Child, url: str = "") -> None:
        self.name = name
        self.url = url
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._child.exit_code

    @property
    def log(self) -> str:
        """All that it has written so far; nothing once its folder has been removed."""
        log = self._child.spec.log
        return log.read_text("utf-8", "replace") if log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def stop(self) -> int:
        """SIGTERM. Its exit code."""
        return await self._child.stop()

    async def kill(self) -> None:
        """SIGKILL, to it and all that it started."""
        await self._child.kill()

    async def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        return await self._child.wait()


class Stack:
    """Processes on one database and one Redis. `environment` holds settings that differ from the usual."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str,
        redis_url: str,
        model_url: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.programs: list[Program] = []
        self._data = DataDirectory(folder)
        self._names = count(1)
        self._pool: Pool | None = None
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": "sk-of-the-tests",
            "LLM_MODEL": "no-script",
            "LONGHAUL_SECRET_KEY": SECRET_KEY,
            "LONGHAUL_FILES_URL": self._data.files.as_uri(),
            "LONGHAUL_DATABASE_POOL": "5",
            "LONGHAUL_GRACE_SECONDS": "3",
            "LONGHAUL_MODEL_RETRIES": "1",
            "LONGHAUL_MODEL_IDLE_TIMEOUT": "3",
            **(environment or {}),
        }

    @property
    def database(self) -> Pool:
        """A pool on the stack's database."""
        assert self._pool is not None, "the stack was not started"
        return self._pool

    @property
    def api(self) -> Program:
        """The first API process."""
        return next(program for program in self.programs if program.url)

    @property
    def url(self) -> str:
        return self.api.url

    @property
    def workers(self) -> list[Program]:
        return [program for program in self.programs if not program.url]

    async def start(self, *, apis: int = 1, workers: int = 1) -> None:
        """Starts that many processes, side by side, and returns when all of them are ready."""
        self._data.create()
        self._pool = await open_pool(self.database_url, size=4, name="tests")
        started = [self.spawn_api() for _ in range(apis)] + [self.spawn_worker() for _ in range(workers)]
        for program in started:
            await self.until_ready(program)

    async def stop(self) -> None:
        """Ends all processes. Those that still run must end in order when they are told to."""
        alive = [program for program in self.programs if program.alive]
        for program in alive:
            program.send(signal.SIGCONT)
            program.send(signal.SIGTERM)
        unwell: list[str] = []
        for program in alive:
            try:
                code = await asyncio.wait_for(program.wait(), _LONGEST_FAREWELL)
            except TimeoutError:
                await program.kill()
                code = None
            if code != 0:
                how = "did not end" if code is None else f"ended with {code}"
                unwell.append(f"{program.name} {how}:\n{program.log[-6000:]}")
        if self._pool is not None:
            await self._pool.close()
            self._pool = None
        assert not unwell, "\n".join(unwell)

    async def add_api(self, environment: Mapping[str, str] | None = None) -> Program:
        """One more API process, ready."""
        program = self.spawn_api(environment)
        await self.until_ready(program)
        return program

    async def add_worker(self, environment: Mapping[str, str] | None = None) -> Program:
        """One more worker, ready."""
        program = self.spawn_worker(environment)
        await self.until_ready(program)
        return program

    def logs(self) -> str:
        """The end of every process's log, for the report of a failure."""
        return "\n".join(f"--- {program.name}\n{program.log[-6000:]}" for program in self.programs)

    def spawn_api(self, environment: Mapping[str, str] | None = None) -> Program:
        """Begins to start an API process."""
        port = _free_port()
        own = {**(environment or {}), "LONGHAUL_PORT": str(port)}
        return self._spawn("api", own, f"http://127.0.0.1:{port}")

    def spawn_worker(self, environment: Mapping[str, str] | None = None, *, module: str = "worker") -> Program:
        """Begins to start a worker. `module` is what runs instead of the usual one."""
        return self._spawn(module, environment or {})

    def _spawn(self, module: str, environment: Mapping[str, str], url: str = "") -> Program:
        name = f"{module.rpartition('.')[2]}-{next(self._names)}"
        spec = ProcessSpec(
            name=name,
            argv=(sys.executable, "-P", "-m", module),
            env={**self._environment, **environment},
            log=self._data.log(name),
            pid_file=self._data.pid_file(name),
            stop_steps=((signal.SIGTERM, 15.0),),
        )
        program = Program(name, Child.spawn(spec), url)
        self.programs.append(program)
        return program

    async def until_ready(self, program: Program) -> None:
        """Waits until it serves, or until it is on the list of living workers."""

        async def ready() -> bool:
            assert program.alive, f"{program.name} ended while it was starting:\n{program.log}"
            return await (_serves(program.url) if program.url else self._works(program.pid))

        await eventually(ready, within=60, every=0.02, what=f"{program.name} is ready")

    async def _works(self, pid: int) -> bool:
        try:
            return bool(await self.database.fetchval("SELECT EXISTS (SELECT FROM workers WHERE pid = $1)", pid))
        except asyncpg.UndefinedTableError:
            return False


async def _serves(url: str) -> bool:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        try:
            async with session.get(f"{url}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
