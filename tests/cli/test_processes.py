"""Processes end with their parent, are told apart from strangers, and are started again when they die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.embedded.directory import DataDirectory
from cli.errors import AlreadyRunning
from cli.lock import DirectoryLock, is_locked
from cli.pidfile import PidFile, ProcessIdentity, start_time
from cli.process import Child, ProcessSpec, end_leftover, until
from cli.supervisor import ProcessService, Supervisor, describe

_WAIT = "import signal; print('up', flush=True); signal.pause()"
_STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"

_SPAWN = """
import sys
from pathlib import Path
from cli.pidfile import PidFile
from cli.process import Child, ProcessSpec

folder = Path(sys.argv[1])
argv = (sys.executable, "-c", "import signal; signal.pause()")
child = Child.spawn(ProcessSpec("orphan", argv, {}, folder / "orphan.log", PidFile(folder / "orphan.pid")))
print(child.pid, flush=True)
sys.stdin.read()
"""


def _spec(folder: Path, script: str, *, patience: float = 5.0) -> ProcessSpec:
    data = DataDirectory(folder)
    data.create()
    return ProcessSpec(
        name="program",
        argv=(sys.executable, "-c", script),
        env=dict(os.environ),
        log=data.log("program"),
        pid_file=data.pid_file("program"),
        stop_steps=((signal.SIGTERM, patience),),
    )


async def _up(child: Child) -> Child:
    async with asyncio.timeout(10):
        await until(lambda: "up" in child.log_tail())
    return child


async def test_a_process_is_asked_to_stop_and_its_pid_file_goes(data_dir: Path) -> None:
    child = await _up(Child.spawn(_spec(data_dir, _WAIT)))
    assert child.spec.pid_file.leftover() == ProcessIdentity(child.pid, start_time(child.pid))
    assert await child.stop() == -signal.SIGTERM
    assert not child.spec.pid_file.path.exists()


async def test_a_process_that_does_not_listen_is_killed(data_dir: Path) -> None:
    child = await _up(Child.spawn(_spec(data_dir, _STUBBORN, patience=0.1)))
    assert await child.stop() == -signal.SIGKILL


async def test_a_missing_program_says_so_in_its_log(data_dir: Path) -> None:
    spec = _spec(data_dir, "")
    missing = ProcessSpec("program", ("/no/such/program",), {}, spec.log, spec.pid_file)
    child = Child.spawn(missing)
    assert await child.wait() == 127
    assert "/no/such/program: No such file or directory" in child.log_tail()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
async def test_a_process_does_not_outlive_a_killed_parent(
    data_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = start_python(_SPAWN, str(data_dir))
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert start_time(pid)
    parent.kill()
    async with asyncio.timeout(10):
        await until(lambda: start_time(pid) == "")


async def test_what_a_killed_supervisor_left_is_ended_by_its_pid_file(data_dir: Path) -> None:
    child = await _up(Child.spawn(_spec(data_dir, _WAIT)))
    assert await end_leftover(child.spec.pid_file, ((signal.SIGTERM, 5.0),))
    assert await child.wait() == -signal.SIGTERM
    assert not await end_leftover(child.spec.pid_file, ())


async def test_a_strangers_process_with_the_pid_of_a_leftover_is_not_touched(data_dir: Path) -> None:
    child = await _up(Child.spawn(_spec(data_dir, _WAIT)))
    stale = PidFile(data_dir / "stale.pid")
    stale.path.write_text(f'{{"pid": {child.pid}, "started": "long ago"}}')
    assert not await end_leftover(stale, ())
    assert child.exit_code is None
    await child.kill()


@pytest.mark.parametrize("content", ["", "12", "[]", '{"pid": "x"}', "\x00"])
async def test_a_damaged_pid_file_is_removed(data_dir: Path, content: str) -> None:
    damaged = PidFile(data_dir / "damaged.pid")
    damaged.path.write_text(content)
    assert damaged.leftover() is None
    assert not damaged.path.exists()


async def test_a_service_that_dies_is_started_again_and_that_is_said(data_dir: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    service = ProcessService(_spec(data_dir, _WAIT))
    await service.start()
    first = service.pid
    assert first is not None
    supervisor = Supervisor(said.put_nowait)
    supervisor.watch(service)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await said.get() == "program ended (SIGKILL), starting it again in 0.2 s"
        await until(lambda: service.pid not in (None, first))
    await supervisor.stop()
    assert service.exit_code is None
    await service.stop()


async def test_a_service_that_keeps_dying_is_started_at_growing_intervals(data_dir: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    service = ProcessService(_spec(data_dir, "raise SystemExit(3)"))
    await service.start()
    supervisor = Supervisor(said.put_nowait)
    supervisor.watch(service)
    async with asyncio.timeout(10):
        assert (await said.get()).endswith("ended (exit code 3), starting it again in 0.2 s")
        assert (await said.get()).endswith("ended (exit code 3), starting it again in 0.4 s")
    await supervisor.stop()
    await service.stop()


def test_exit_codes_are_described_in_words() -> None:
    assert describe(2) == "exit code 2"
    assert describe(-9) == "SIGKILL"
    assert describe(-250) == "signal 250"


def test_a_directory_lock_excludes_others_until_it_is_released(data_dir: Path) -> None:
    lock = DirectoryLock(data_dir)
    assert not is_locked(data_dir)
    lock.acquire()
    assert is_locked(data_dir)
    with pytest.raises(AlreadyRunning):
        DirectoryLock(data_dir).acquire()
    lock.release()
    assert not is_locked(data_dir)
