"""What a data directory remembers between starts, and tells other commands while a stack runs.

    DATA/secret_key      signs stream tokens
    DATA/api_key         the API key of the development org
    DATA/stack.json      where the running stack is reached; only worth something while the lock is held

All are readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.errors import NotRunning
from cli.lock import is_locked

_NAME = ".longhaul"


@dataclass(frozen=True, slots=True)
class RunningStack:
    """Where a running stack is reached."""

    url: str
    api_key: str = field(repr=False)
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def default_directory() -> Path:
    """`.longhaul` beside the nearest one there is, looking upward; else in the project's root; else here."""
    here = Path.cwd()
    for marks in ((_NAME,), ("pyproject.toml", ".git")):
        for directory in (here, *here.parents):
            if any((directory / mark).exists() for mark in marks):
                return directory / _NAME
    return here / _NAME


def secret_key(directory: Path) -> str:
    """The signing secret, made at the first call."""
    path = directory / "secret_key"
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        secret = secrets.token_hex(32)
        _write_private(path, secret)
        return secret


def read_api_key(directory: Path) -> str | None:
    """The development key as last written, which the database may no longer know."""
    try:
        return (directory / "api_key").read_text("ascii").strip()
    except FileNotFoundError:
        return None


def write_api_key(directory: Path, secret: str) -> None:
    _write_private(directory / "api_key", secret)


def write_running(directory: Path, stack: RunningStack) -> None:
    _write_private(directory / "stack.json", json.dumps(asdict(stack)))


def forget_running(directory: Path) -> None:
    (directory / "stack.json").unlink(missing_ok=True)


def find_running(directory: Path) -> RunningStack:
    """The stack that runs on `directory`. Raises NotRunning."""
    try:
        if is_locked(directory):
            return RunningStack(**json.loads((directory / "stack.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        pass  # still starting, or from another release: not there for us
    raise NotRunning(
        f"No stack runs on {directory}.",
        suggestions=("start one: longhaul dev", "or set LONGHAUL_URL and LONGHAUL_API_KEY to reach another"),
    )


def _write_private(path: Path, text: str) -> None:
    """Replaces the file in one step, so that a reader never sees half of it."""
    fresh = path.with_name(path.name + ".new")
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    fresh.replace(path)
