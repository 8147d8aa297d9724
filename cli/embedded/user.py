"""Whom Postgres runs as. It refuses root, so root needs another user, who must be able to reach the files.

Nothing here does anything unless the effective user is root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

_NAME = "longhaul"


def server_user(cluster: Path) -> tuple[int, int] | None:
    """(uid, gid) to run Postgres as, or None for the present user.

    An existing cluster keeps its owner. A new one belongs to the system user `longhaul`, made on first need,
    or to `nobody` where users can't be made.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (state := cluster.stat()).st_uid != 0:
        return state.st_uid, state.st_gid
    for name in (_NAME, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            if name != _NAME or not _made_user():
                continue
            entry = pwd.getpwnam(name)
        return entry.pw_uid, entry.pw_gid
    raise RuntimeError("this system knows no user 'nobody'")


def _made_user() -> bool:
    program = shutil.which("useradd", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        return False
    subprocess.run(
        [program, "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", _NAME],
        capture_output=True,
        check=False,
    )
    try:
        pwd.getpwnam(_NAME)  # it may also be there because another start was quicker
    except KeyError:
        return False
    return True


def let_through(path: Path, user: tuple[int, int], say: Callable[[str], None]) -> None:
    """Lets `user` pass through every directory above `path`: adds the search bit for others where missing.

    Search alone does not let anyone list a directory, nor read what is not open to them in it.
    """
    for directory in path.resolve().parents:
        if not _has(directory, user, stat.S_IXUSR):
            say(f"letting Postgres, which can't run as root, pass through {directory} (chmod o+x)")
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)


def let_read(trees: Iterable[Path], user: tuple[int, int]) -> None:
    """Lets `user` read and run what was installed under a strict umask."""
    for tree in trees:
        for path in (tree, *tree.rglob("*")):
            if path.is_symlink():
                continue
            mode = stat.S_IMODE(path.stat().st_mode)
            wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
            if wanted != mode and not _has(path, user, stat.S_IRUSR):
                path.chmod(wanted)


def _has(path: Path, user: tuple[int, int], owner_bit: int) -> bool:
    state = path.stat()
    if state.st_uid == user[0]:
        return bool(state.st_mode & owner_bit)
    if state.st_gid == user[1]:
        return bool(state.st_mode & (owner_bit >> 3))
    return bool(state.st_mode & (owner_bit >> 6))
