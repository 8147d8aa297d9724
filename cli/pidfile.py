"""Recognises a process that an earlier supervisor left behind.

A pid alone says little: numbers are used again, in containers soon. So the start time is kept beside it, and
a process is only taken for ours when both agree.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_HAS_PROC = (_PROC / "self" / "stat").exists()


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, and no later one of the same pid."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        return bool(self.started) and start_time(self.pid) == self.started


class PidFile:
    """Holds the identity of one process for as long as it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, pid: int) -> None:
        self.path.write_text(json.dumps({"pid": pid, "started": start_time(pid)}), "utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def leftover(self) -> ProcessIdentity | None:
        """The process that was written here, if it still runs. A file that says nothing useful is removed."""
        try:
            record = json.loads(self.path.read_bytes())
            identity = ProcessIdentity(int(record["pid"]), str(record["started"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # the machine went down while it was written
            self.remove()
            return None
        if identity.is_alive():
            return identity
        self.remove()
        return None


def start_time(pid: int) -> str:
    """When the process started, as text that no later process of that pid shares. Empty when it is gone."""
    if not _HAS_PROC:
        return _ps(pid, "lstart")
    try:
        stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # proc(5): the name in parentheses may hold anything, so count behind it: state is 3rd, start 22nd.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def command_line(pid: int) -> str:
    """The command line of a process, arguments joined by blanks. Empty when it is gone."""
    if not _HAS_PROC:
        return _ps(pid, "command")
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _ps(pid: int, column: str) -> str:
    argv = ["ps", "-ww", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
