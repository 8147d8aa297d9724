"""Quotas of workspaces: the bytes of one file, and the bytes and number of all files of a session.

They are checked while bytes come in, so that what is too large is never stored, and once more under the lock of the
workspace, where two writers can't both take the last room.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from kernel.errors import CallerError
from kernel.settings import Settings


class FileTooLarge(CallerError):
    """One file has more bytes than allowed."""

    code = "file_too_large"
    status = 413


class NoRoom(CallerError):
    """The session's workspace is full."""

    code = "workspace_full"
    status = 413


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Bytes of one file, bytes and number of all files of a session."""

    file_bytes: int
    session_bytes: int
    session_files: int

    @classmethod
    def from_settings(cls, settings: Settings) -> FileLimits:
        return cls(settings.files_max_bytes, settings.files_session_bytes, settings.files_per_session)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a workspace holds."""

    files: int
    bytes: int


class Flow:
    """Bytes on their way into the store, counted and digested. `room` is what the workspace has left.

    `size` and `digest` are those of what has come so far.
    """

    def __init__(self, data: AsyncIterator[bytes], limits: FileLimits, room: int) -> None:
        self._data = data
        self._limits = limits
        self._room = room
        self.size = 0
        self.digest = hashlib.sha256()

    def check(self, size: int) -> None:
        """Raises FileTooLarge or NoRoom where so many bytes would not do."""
        if size > self._limits.file_bytes:
            raise FileTooLarge(
                f"A file may have at most {self._limits.file_bytes} bytes.",
                suggestions=("split it into several files",),
            )
        if size > self._room:
            raise no_room(self._limits)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes. Raises as `check` does as soon as there are too many."""
        async for piece in self._data:
            self.size += len(piece)
            self.check(self.size)
            self.digest.update(piece)
            yield piece


def no_room(limits: FileLimits) -> NoRoom:
    """All files together are too large."""
    return NoRoom(
        f"The files of a session may have at most {limits.session_bytes} bytes together.",
        suggestions=("delete files that are not needed any more",),
    )
