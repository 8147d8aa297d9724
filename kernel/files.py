"""Files of a session: its workspace, which callers, tools and runs read and write.

Rows are in Postgres, bytes in the blob store. A write puts the bytes first and the row after them, in one transaction
that also counts: a file is there as a whole or not at all, and its readers see the old bytes or the new ones. What no
row names any more is deleted by whoever noticed, or else by a chore. A workspace never holds more than its quotas.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

import asyncpg
import structlog

from kernel.blobs import BlobMissing, BlobPlace, Blobs
from kernel.errors import CallerError, Conflict, NotFound, StoreUnavailable
from kernel.file_paths import checked_path, checked_prefix, content_type_of
from kernel.file_quotas import FileLimits, FileTooLarge, Flow, NoRoom, Usage, no_room
from kernel.postgres import UNAVAILABLE, Pool
from kernel.settings import Settings
from kernel.sql import statements

SQL = statements(__package__, "files.sql")
log = structlog.get_logger(__name__)

ABSENT: Final = ""
"""As `expected`: no such file may be there yet."""

_LOOKS: Final = 5
_SWEPT_AT_ONCE: Final = 1_000


class FileChanged(CallerError):
    """The file is not the version that was expected."""

    code = "precondition_failed"
    status = 412


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is now. `etag` is another one after every write; `user_id` and `run_id` say who wrote it last."""

    path: str
    size: int
    content_type: str
    sha256: str
    blob: str
    user_id: str | None
    run_id: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        return self.blob.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes a file: a caller of the API, or a run.

    `call` is the idempotency key of the tool call that does it. The same call made again, after a crash, changes
    nothing any more, whatever others have done to the file since.
    """

    user_id: str | None = None
    run_id: str | None = None
    call: str | None = None


class Files:
    """The workspaces of all sessions. Every method asks for the org too: another org's session does not exist.

    All of them raise:
        InvalidInput: a path is not what `kernel.file_paths` takes.
        StoreUnavailable: the blob store is away or not configured. Postgres' own errors pass through.
    """

    def __init__(self, db: Pool, blobs: Blobs, limits: FileLimits) -> None:
        self._db = db
        self._blobs = blobs
        self.limits = limits

    @classmethod
    def from_settings(cls, settings: Settings, db: Pool) -> Files:
        return cls(db, Blobs(BlobPlace.from_settings(settings)), FileLimits.from_settings(settings))

    async def stat(self, org_id: str, session_id: str, path: str) -> File:
        """What is known of a file. Raises NotFound."""
        return await self._stat(org_id, session_id, checked_path(path))

    async def list(
        self, org_id: str, session_id: str, *, prefix: str = "", after: str = "", limit: int = 1_000
    ) -> list[File]:
        """Files whose paths begin with `prefix`, sorted by path bytewise, from the one after path `after` on. A session
        without files, or one that is not there, has none."""
        rows = await self._db.fetch(SQL.list, org_id, session_id, after, checked_prefix(prefix), limit)
        return [_file(row) for row in rows]

    async def usage(self, org_id: str, session_id: str) -> Usage:
        """How much the workspace holds."""
        row = await self._db.fetchrow(SQL.usage, org_id, session_id)
        return Usage(row["files"], row["bytes"]) if row is not None else Usage(0, 0)

    @asynccontextmanager
    async def open(
        self, org_id: str, session_id: str, path: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[tuple[File, AsyncIterator[bytes]]]:
        """A file and its bytes from `start` up to, and without, `end`, in pieces, all of one version.

        Raises:
            NotFound: there is none.
        """
        path = checked_path(path)
        file = await self._stat(org_id, session_id, path)
        for look in range(_LOOKS):
            opening = self._blobs.open(file.blob, start=start, end=file.size if end is None else min(end, file.size))
            try:
                pieces = await opening.__aenter__()
            except BlobMissing:
                # Another version may have taken its place in between.
                seen, file = file, await self._stat(org_id, session_id, path)
                if seen.blob == file.blob and look:
                    log.error("blob_missing", session_id=session_id, blob=file.blob)
                    raise StoreUnavailable(f"The bytes of the file {path!r} are missing in the store.") from None
                continue
            try:
                yield file, pieces
            finally:
                await opening.__aexit__(None, None, None)
            return
        raise Conflict(f"The file {path!r} is being replaced all the time.", suggestions=("try again",))

    async def read(self, org_id: str, session_id: str, path: str, max_bytes: int) -> bytes:
        """All bytes of a file.

        Raises:
            NotFound: there is none.
            FileTooLarge: it has more than `max_bytes`.
        """
        async with self.open(org_id, session_id, path) as (file, pieces):
            _check_size(file, max_bytes)
            return b"".join([piece async for piece in pieces])

    async def download_to(
        self, org_id: str, session_id: str, path: str, target: Path, max_bytes: int | None = None
    ) -> File:
        """Copies a file to `target` on this machine, which must not be there yet; only its owner may read it.

        Raises:
            NotFound, FileTooLarge: as for `read`.
        """
        async with self.open(org_id, session_id, path) as (file, pieces):
            _check_size(file, self.limits.file_bytes if max_bytes is None else max_bytes)
            out = await asyncio.to_thread(_create, target)
            try:
                async for piece in pieces:
                    await asyncio.to_thread(out.write, piece)
            finally:
                await asyncio.to_thread(out.close)
            return file

    async def write(
        self,
        org_id: str,
        session_id: str,
        path: str,
        data: bytes | AsyncIterator[bytes],
        *,
        by: Author,
        content_type: str | None = None,
        expected: str | None = None,
        announced: int | None = None,
    ) -> File:
        """Writes a file, a new one or over the one that is there.

        Args:
            data: errors that come out of it pass through, and nothing is written.
            content_type: a valid one; None stands for what the name says.
            expected: the etag that the file must have, or `ABSENT`.
            announced: how many bytes will come, where that is known: too many are refused before they come.

        Raises:
            NotFound: no such session in the org.
            FileTooLarge, NoRoom: it would exceed a quota.
            FileChanged: it is not as `expected`.
            Conflict: the path is a folder of other files, or goes through a file.
        """
        path = checked_path(path)
        blob = f"{org_id}/{session_id}/{uuid4().hex}"
        begun = await self._db.fetchrow(SQL.begin_upload, org_id, session_id, blob, path)
        if begun is None:
            raise _no_session(session_id)
        if isinstance(data, bytes):
            announced, data = len(data), _whole(data)
        room = self.limits.session_bytes - begun["bytes"] + begun["replaced"]
        flow = Flow(data, self.limits, room)
        if announced is not None:
            flow.check(announced)
        # From here on, whatever breaks off leaves at most a loose blob, which a chore finds in an hour.
        await self._blobs.write(blob, flow.pieces())
        async with self._db.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                SQL.put,
                *(org_id, session_id, path, flow.size),
                *(content_type or content_type_of(path), flow.digest.digest(), blob),
                *(by.user_id, by.run_id, by.call),
                f"{org_id}/{session_id}/{expected}" if expected else expected,
                *(self.limits.session_files, self.limits.session_bytes),
            )
            assert row is not None
            # Still under the lock: later there may be another's version, which nobody must take for this one.
            written = await connection.fetchrow(SQL.get, org_id, session_id, path)
        if row["outcome"] != "done":
            await self._discard(blob)
        self._judge(row, path, session_id)
        if row["replaced"] is not None:
            await self._discard(row["replaced"])
        return _found(written, path)

    async def move(
        self, org_id: str, session_id: str, source: str, target: str, *, by: Author, replace: bool = False
    ) -> File:
        """Gives a file another path.

        Raises:
            NotFound: there is none.
            Conflict: there is a file at `target` and it is not to be replaced; or as for `write`.
        """
        source, target = checked_path(source), checked_path(target)
        async with self._db.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                SQL.move, org_id, session_id, source, target, replace, by.user_id, by.run_id, by.call
            )
            assert row is not None
            moved = await connection.fetchrow(SQL.get, org_id, session_id, target)
        if row["outcome"] == "stale":
            raise Conflict(f"There is a file {target!r} already.", suggestions=("choose another path", "replace it"))
        self._judge(row, source if row["outcome"] == "no_file" else target, session_id)
        if row["replaced"] is not None:
            await self._discard(row["replaced"])
        return _found(moved, target)

    async def delete(self, org_id: str, session_id: str, path: str, *, by: Author, expected: str | None = None) -> None:
        """Deletes a file.

        Raises:
            NotFound: there is none.
            FileChanged: it is not as `expected`.
        """
        path = checked_path(path)
        version = f"{org_id}/{session_id}/{expected}" if expected is not None else None
        row = await self._db.fetchrow(SQL.drop, org_id, session_id, path, by.run_id, by.call, version)
        assert row is not None
        self._judge(row, path, session_id)
        if row["replaced"] is not None:
            await self._discard(row["replaced"])

    async def done_before(self, org_id: str, session_id: str, call: str) -> bool:
        """Whether this call of a tool has changed a file."""
        return bool(await self._db.fetchval(SQL.done_before, org_id, session_id, call))

    async def sweep(self) -> int:
        """Deletes blobs that nothing names any more, a thousand at most; how many there were."""
        due = [row["blob"] for row in await self._db.fetch(SQL.due_blobs, _SWEPT_AT_ONCE)]
        if due:
            await self._blobs.delete(due)
            await self._db.execute(SQL.forget_blobs, due)
        return len(due)

    async def forget_calls(self) -> None:
        """Forgets which calls have changed files, of runs that have ended."""
        await self._db.execute(SQL.forget_calls)

    async def _stat(self, org_id: str, session_id: str, path: str) -> File:
        return _found(await self._db.fetchrow(SQL.get, org_id, session_id, path), path)

    def _judge(self, row: asyncpg.Record, path: str, session_id: str) -> None:
        match row["outcome"]:
            case "no_session":
                raise _no_session(session_id)
            case "no_file":
                raise _no_file(path)
            case "stale":
                raise FileChanged(
                    f"The file {path!r} is not what the request expects it to be.",
                    suggestions=("read it again and decide anew",),
                )
            case "in_the_way":
                raise _in_the_way(path, row["other"])
            case "no_room":
                raise no_room(self.limits)
            case "no_place":
                raise NoRoom(
                    f"The session has {self.limits.session_files} files already, which is the most it may have.",
                    suggestions=("delete files that are not needed any more",),
                )
            case "too_late":
                raise Conflict(f"Writing the file {path!r} took too long.", suggestions=("write it again",))

    async def _discard(self, blob: str) -> None:
        """Deletes a blob that nothing names, now if that works: it is in `loose_blobs` and will be found there."""
        try:
            await self._blobs.delete([blob])
            await self._db.execute(SQL.forget_blobs, [blob])
        except (StoreUnavailable, *UNAVAILABLE) as error:
            log.warning("blob_not_deleted", blob=blob, error=repr(error), effect="a chore deletes it")


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _create(target: Path) -> BinaryIO:
    return open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def _check_size(file: File, most: int) -> None:
    if file.size > most:
        raise FileTooLarge(f"The file {file.path!r} has {file.size} bytes; at most {most} can be read here.")


def _found(row: asyncpg.Record | None, path: str) -> File:
    if row is None:
        raise _no_file(path)
    return _file(row)


def _file(row: asyncpg.Record) -> File:
    return File(**{**row, "sha256": row["sha256"].hex()})


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"There is no session {session_id}.", field="session_id")


def _no_file(path: str) -> NotFound:
    return NotFound(f"There is no file {path!r}.", field="path")


def _in_the_way(path: str, other: str) -> Conflict:
    if other.startswith(f"{path}/"):
        return Conflict(f"{path!r} is a folder: there is a file {other!r} in it.", suggestions=("choose another path",))
    return Conflict(f"{other!r} is a file, so {path!r} can't be in it.", suggestions=("choose another path",))
