"""The data directory: where each thing of a stack lies, and with which permissions.

    DATA/lock            held by the one process that runs a stack here
    DATA/postgres/       the database cluster
    DATA/files/          the files of sessions
    DATA/logs/*.log      the output of each process
    DATA/run/*.pid       what a supervisor that was killed left behind, found at the next start

Only its owner may read it. Where root runs the stack, others may pass through (not list) it, because Postgres
refuses root and runs as another user inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cli.errors import BadData
from cli.pidfile import PidFile

# sun_path holds 108 bytes on Linux and 104 on macOS, with the ending NUL.
_LONGEST_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths within one data directory."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def files(self) -> Path:
        return self.path / "files"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def pid_file(self, name: str) -> PidFile:
        return PidFile(self.run / f"{name}.pid")

    def create(self) -> None:
        """Makes the directories. Raises BadData where that is not possible."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.path.stat().st_uid == os.geteuid():
                self.path.chmod(mode)
            for directory in (self.logs, self.run):
                directory.mkdir(exist_ok=True)
                if directory.stat().st_uid == os.geteuid():
                    directory.chmod(0o700)
        except OSError as error:
            raise BadData(
                f"Can't use {self.path} as data directory: {error.strerror}.",
                suggestions=("choose another one with --data-dir", f"or see who owns it: ls -ld {self.path}"),
            ) from error


def socket_directory(wanted: Path, longest_name: str, owner: tuple[int, int]) -> Path:
    """`wanted`, or where that does not do for a socket's path in a URL, a private short directory for it.

    The short one is the same at each start, so that addresses outlive a restart. Characters that a URL would
    have to escape count as too long: not every client undoes the escapes.
    """
    path = os.fsencode(wanted / longest_name)
    if len(path) <= _LONGEST_SOCKET_PATH and quote(path) == os.fsdecode(path):
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"longhaul-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    state = short.lstat()
    if short.is_symlink() or state.st_uid not in (os.geteuid(), owner[0]):
        raise BadData(f"{short} belongs to someone else; remove it, or choose a shorter --data-dir.")
    if state.st_uid != owner[0]:
        os.chown(short, *owner)
    return short


def leave_socket_directory(used: Path, wanted: Path) -> None:
    """Removes what `socket_directory` made, unless a socket is still in it."""
    if used != wanted:
        with contextlib.suppress(OSError):
            used.rmdir()
