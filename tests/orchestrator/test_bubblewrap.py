"""The box for real CPython, and a corpus of attempts to get out of it or to wear it down."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.sandbox.bubblewrap import Bubblewrap, Ran
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(Bubblewrap.missing() is not None, reason=f"no sandbox here: {Bubblewrap.missing()}")


@pytest.fixture(scope="module")
def box() -> Bubblewrap:
    return Bubblewrap(seconds=20, cpu_seconds=2)


@pytest.fixture(scope="module")
def hasty_box() -> Bubblewrap:
    return Bubblewrap(seconds=0.5)


async def test_code_runs_and_its_last_value_is_shown(box: Bubblewrap) -> None:
    ran = await box.run("import sqlite3, statistics\nprint('so')\nstatistics.mean([1, 2])")
    assert ran == Ran("so\n1.5\n", "", 0, cut=False, late=False)


async def test_an_error_comes_back_as_a_traceback(box: Bubblewrap) -> None:
    ran = await box.run("def f():\n    raise ValueError('no')\nf()")
    assert ran.exit_code == 1
    assert ran.stderr.endswith("ValueError: no\n")
    syntax = await box.run("1 +")
    assert "SyntaxError" in syntax.stderr


async def test_files_that_are_given_can_be_read_and_not_written(box: Bubblewrap, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert (await box.run("open('/files/a.txt').read()", files=tmp_path)).stdout == "'hello'\n"
    assert "Read-only" in (await box.run("open('/files/a.txt', 'w')", files=tmp_path)).stderr
    assert "Read-only" in (await box.run("open('/files/b.txt', 'w')", files=tmp_path)).stderr
    (tmp_path / "out").symlink_to("/etc/passwd")
    assert "FileNotFoundError" in (await box.run("open('/files/out').read()", files=tmp_path)).stderr


NOWHERE = {
    "read the machine's files": "open('/etc/passwd').read()",
    "read the worker's memory": "open(f'/proc/{1}/mem', 'rb').read(1)",
    "list the source": f"import os; os.listdir({str(Path(__file__).parents[2])!r})",
    "climb up": "import os; os.chdir('/tmp'); open('../../../etc/shadow').read()",
    "change the root": "import os; os.chroot('/tmp')",
    "write beside /tmp": "open('/usr/lib/x', 'w')",
    "write a device": "open('/dev/x', 'w')",
    "make a device": "import os; os.mknod('/tmp/d', 0o600 | 0o060000, 0)",
    "fork": "import os; os.fork()",
    "start a program": "import subprocess; subprocess.run(['/bin/sh'])",
    "a shell": "import os\nif os.system('id'): raise OSError('no shell')",
    "multiprocessing": "import multiprocessing as m; m.Process(target=print).start()",
    "exec": "import os; os.execv('/bin/sh', ['sh'])",
    "connect outside": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "connect to the machine": "import socket; socket.create_connection(('127.0.0.1', 5432), 2)",
    "look up a name": "import socket; socket.getaddrinfo('example.com', 80)",
    "a new namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError(1, 'no')",
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'/dev', b'/tmp', b'tmpfs', 0, None): raise OSError(1, 'no')",
    "trace": "import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0) < 0: raise OSError(1, 'no')",
    "become root": "import os; os.setuid(0)",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
    "kill others": "import os; os.kill(-1, 9)",
}


@pytest.mark.parametrize("attempt", NOWHERE)
async def test_an_attempt_to_get_out_gets_nowhere(box: Bubblewrap, attempt: str) -> None:
    ran = await box.run(NOWHERE[attempt])
    assert ran.exit_code == 1, ran
    assert "error" in ran.stderr.lower()
    assert ran.stdout == ""


async def test_there_is_nothing_of_ours_to_be_seen(box: Bubblewrap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "hunter2")
    code = (
        "import os\n[p for p in os.listdir('/proc') if p.isdigit()], dict(os.environ), os.uname().nodename, os.getuid()"
    )
    ran = await box.run(code)
    assert "hunter2" not in ran.stdout
    environment = "{'PATH': '/usr/bin', 'LANG': 'C.UTF-8', 'HOME': '/tmp', 'PWD': '/tmp'}"
    assert ran.stdout == f"(['1', '2'], {environment}, 'box', 65534)\n"
    open_files = "import os\nsorted(int(n) for n in os.listdir('/proc/self/fd'))"
    assert (await box.run(open_files)).stdout == "[0, 1, 2, 3]\n"  # the last is the listing's own


async def test_each_call_finds_an_empty_place(box: Bubblewrap) -> None:
    await box.run("open('/tmp/left', 'w').write('x')")
    assert (await box.run("import os; os.listdir('/tmp')")).stdout == "[]\n"


BOMBS = {
    "memory": "x = bytearray(10 ** 10)",
    "memory, bit by bit": "x = []\nwhile True: x.append(bytearray(10 ** 7))",
    "one big file": "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(10 ** 6))",
    "many files": "import itertools\nfor n in itertools.count(): open(f'/tmp/{n}', 'wb').write(bytes(10 ** 7))",
    "shared memory": "import itertools\nfor n in itertools.count(): open(f'/dev/shm/{n}', 'wb').write(bytes(10 ** 7))",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(3,)).start()",
    "descriptors": "x = []\nwhile True: x.append(open('/dev/null'))",
    "recursion": "def f(): f()\nf()",
    "a deep parse": "eval('(' * 10 ** 5)",
    "CPU": "while True: pass",
    "CPU in C": "sum(range(10 ** 12))",
    "CPU in threads": "import threading as t\ndef f():\n    while 1: pass\nfor n in 'abcd': t.Thread(None, f).start()",
    "a pattern": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_ends_at_a_limit(box: Bubblewrap, bomb: str) -> None:
    ran = await box.run(BOMBS[bomb])
    assert ran.exit_code != 0
    assert not ran.late
    assert (await box.run("1 + 1")).stdout == "2\n"


# Memory of the kernel that no limit on a process counts.
UNCOUNTED = {
    "files in memory": "import os; os.memfd_create('x')",
    "hidden memory": "import ctypes as c\nif c.CDLL(None).syscall(447, 0) < 0: raise OSError(1, 'no')",
    "segments of shared memory": "import ctypes as c\n"
    "if c.CDLL(None).shmget(0, 4096, 0o1600) < 0: raise OSError(1, 'no')",
    "message queues": "import ctypes as c\nif c.CDLL(None).msgget(0, 0o1600) < 0: raise OSError(1, 'no')",
    "semaphores": "import ctypes as c\nif c.CDLL(None).semget(0, 1, 0o1600) < 0: raise OSError(1, 'no')",
    "queues of asynchronous reads": "import ctypes as c, platform\n"
    "n = {'x86_64': 206, 'aarch64': 0}[platform.machine()]\n"
    "if c.CDLL(None).syscall(n, 1, c.byref(c.c_ulong())) < 0: raise OSError(1, 'no')",
}


@pytest.mark.parametrize("way", UNCOUNTED)
async def test_memory_that_no_limit_counts_can_not_be_taken(box: Bubblewrap, way: str) -> None:
    ran = await box.run(UNCOUNTED[way])
    assert (ran.exit_code, ran.late) == (1, False)
    assert "OSError" in ran.stderr or "PermissionError" in ran.stderr


async def test_threads_are_few(box: Bubblewrap) -> None:
    """Small ones would fit into the memory by the thousand, and take all process numbers of the machine."""
    ran = await box.run(
        "import os, threading\n"
        "threading.stack_size(32768)\n"
        "for n in range(200): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    assert ran.exit_code == 1
    assert "can't start new thread" in ran.stderr


@pytest.mark.parametrize(
    "flood", ["while True: print('x' * 1000)", "import sys\nwhile True: sys.stderr.write('x' * 1000)"]
)
async def test_an_output_flood_is_cut_off(box: Bubblewrap, flood: str) -> None:
    ran = await box.run(flood)
    assert ran.cut
    assert not ran.late
    assert len(ran.stdout) + len(ran.stderr) <= 40_000


async def test_floods_leave_no_pipes_open(box: Bubblewrap) -> None:
    before = _pipes()
    for _ in range(8):
        await box.run("import os\nwhile True: os.write(1, bytes(65536)), os.write(2, bytes(65536))")

    async def closed() -> bool:
        return not _pipes() - before

    await eventually(closed, within=5)


async def test_what_takes_too_long_is_ended_and_leaves_no_process(hasty_box: Bubblewrap) -> None:
    before = _children()
    ran = await hasty_box.run("import time; time.sleep(1000)")
    assert ran.late
    assert _children() == before


async def test_a_cancelled_call_leaves_no_process(box: Bubblewrap) -> None:
    before = _children()
    running = asyncio.create_task(box.run("import time; time.sleep(1000)"))
    await eventually(_started(before))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert _children() == before


def _started(before: set[str]) -> Callable[[], Awaitable[bool]]:
    async def started() -> bool:
        return _children() != before

    return started


def _pipes() -> set[str]:
    with os.scandir("/proc/self/fd") as found:
        links = {os.readlink(each.path) for each in found if os.path.lexists(each.path)}
    return {link for link in links if link.startswith("pipe:")}


def _children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
