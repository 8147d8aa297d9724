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


def let_through(paths: Iterable[Path], user: tuple[int, int], say: Callable[[str], None]) -> None:
    """Lets `user` pass through every directory above `paths`: adds the search bit for others where missing.

    Search alone does not let anyone list a directory, nor read what is not open to them in it.
    """
    above = {directory for path in paths for directory in path.resolve().parents}
    closed = sorted(directory for directory in above if not _has(directory, user, stat.S_IXUSR))
    for directory in closed:
        directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)
    if closed:
        say(f"Postgres can't run as root; let its user through {', '.join(map(str, closed))} (chmod o+x)")


def let_read(tree: Path, user: tuple[int, int]) -> None:
    """Lets `user` read and run what was installed under a strict umask, which the top directory shows."""
    if not tree.exists() or _has(tree, user, stat.S_IRUSR):
        return
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _has(path: Path, user: tuple[int, int], owner_bit: int) -> bool:
    state = path.stat()
    if state.st_uid == user[0]:
        return bool(state.st_mode & owner_bit)
    if state.st_gid == user[1]:
        return bool(state.st_mode & (owner_bit >> 3))
    return bool(state.st_mode & (owner_bit >> 6))
