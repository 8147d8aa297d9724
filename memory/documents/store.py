"""Documents as rows and bytes. An upload is stored as a whole, with the job that takes it in, or not at all.

What the beginning of a document shows to be wrong is refused before anything is stored. Bytes lie in the blob store
that files of sessions use, under random keys; see `kernel.files` for how rows and blobs keep together.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import asyncpg
import orjson
import structlog

from kernel.blobs import BlobMissing, BlobPlace, Blobs
from kernel.errors import CallerError, InvalidInput, NotFound, StoreUnavailable
from kernel.file_paths import checked_path
from kernel.files import File
from kernel.ids import is_id, new_id
from kernel.jobs import add_job
from kernel.postgres import UNAVAILABLE, Connection, Pool
from kernel.settings import Settings
from kernel.sql import statements
from memory.documents.formats import LOOK, MEDIA_TYPES, Format, charset_of, format_of
from memory.documents.records import ATTEMPTS, JOB, Document, DocumentLimits, Place, Status, StoredPassage
from memory.documents.refusals import DocumentRefused
from memory.records import Scope, ScopeKind

SQL = statements(__package__, "documents.sql")
log = structlog.get_logger(__name__)

_LOOKS: Final = 5
_Passages = list[StoredPassage]
_Shown = list[Document]  # `list` is a method below


class NoDocumentRoom(CallerError):
    """The org has as many documents, or bytes of them, as it may."""

    code = "documents_full"
    status = 413


class NoPlace(CallerError):
    """The deployment keeps no files, and so no documents."""

    code = "no_place_for_files"
    status = 409


@dataclass(frozen=True, slots=True)
class _Stored:
    """Bytes that are in the blob store, and what is known of them."""

    blob: str
    format: Format
    media_type: str
    charset: str | None
    size: int
    sha256: bytes


class Documents:
    """The documents of all orgs.

    All methods raise StoreUnavailable where the blob store is away. Postgres' own errors pass through.
    """

    def __init__(self, db: Pool, blobs: Blobs, limits: DocumentLimits, *, has_place: bool = True) -> None:
        self._db = db
        self._blobs = blobs
        self._limits = limits
        self._has_place = has_place

    @classmethod
    def from_settings(cls, settings: Settings, db: Pool) -> Documents:
        blobs = Blobs(BlobPlace.from_settings(settings))
        return cls(db, blobs, DocumentLimits.from_settings(settings), has_place=bool(settings.files_url))

    async def upload(
        self,
        place: Place,
        data: bytes | AsyncIterator[bytes],
        *,
        media_type: str = "",
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        announced: int | None = None,
        document_id: str | None = None,
    ) -> tuple[Document, bool]:
        """Takes a document, or a new version of the one that has this place already; whether anything changed.

        The same bytes once more change nothing, unless they could not be read.

        Args:
            media_type: as in a Content-Type header, empty where nothing is known.
            announced: how many bytes will come, where that is known.
            document_id: replaces this one, whose place this is.

        Raises:
            NoPlace: there is nowhere to keep bytes.
            InvalidInput: the name is none.
            DocumentRefused: empty, too large, of a type that is not read, or not what it is said to be.
            NoDocumentRoom: the org has enough documents.
            NotFound: no such document.
        """
        if not self._has_place:
            raise NoPlace(
                "This deployment has no place for documents.",
                suggestions=("set LONGHAUL_FILES_URL for the API and the workers",),
            )
        name = checked_name(place.name)
        if announced is not None:
            self._check_size(announced)
        usage = await self._db.fetchrow(SQL.usage, place.org_id)
        assert usage is not None
        if usage["documents"] > self._limits.per_org or usage["bytes"] > 2 * self._limits.org_bytes:
            raise self._no_room()
        stored = await self._store(place.org_id, name, media_type, _whole(data) if isinstance(data, bytes) else data)
        try:
            async with self._db.acquire() as connection, connection.transaction():
                found, changed = await self._commit(connection, place, stored, user_id, metadata, document_id)
        except BaseException:
            await self._discard(stored.blob)
            raise
        if not changed:
            await self._discard(stored.blob)
        return await self.get(Scope(place.org_id), found, everyone=True), changed

    async def get(self, scope: Scope, document_id: str, *, everyone: bool = False) -> Document:
        """A document that the asker may see.

        Raises:
            NotFound: there is none.
        """
        rows = await self._shown(scope, everyone, document_id, None, 1, None) if is_id("doc", document_id) else []
        if not rows:
            raise no_document(document_id)
        return rows[0]

    async def list(
        self,
        scope: Scope,
        *,
        everyone: bool = False,
        kind: ScopeKind | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Document]:
        """Those that the asker may see, the newest first, from the one before id `before` on."""
        return await self._shown(scope, everyone, None, before, limit, kind)

    async def passages(self, org_id: str, document_id: str, *, after: int = -1, limit: int = 50) -> _Passages:
        """Its passages in reading order, those after place `after`, as Longhaul's own memory keeps them."""
        rows = await self._db.fetch(SQL.passages, org_id, document_id, after, limit)
        return [StoredPassage(**row) for row in rows]

    async def delete_of_user(self, org_id: str, user_id: str) -> int:
        """Deletes all documents of one user; how many there were."""
        found = [row["id"] for row in await self._db.fetch(SQL.of_user, org_id, user_id)]
        for document_id in found:
            with contextlib.suppress(NotFound):
                await self.delete(org_id, document_id)
        return len(found)

    async def delete(self, org_id: str, document_id: str) -> None:
        """Nobody sees it from here on. A job removes what it consists of; passages may be removed at once besides.

        Raises:
            NotFound: there is none.
        """
        async with self._db.acquire() as connection, connection.transaction():
            if not await connection.fetchval(SQL.delete, org_id, document_id):
                raise no_document(document_id)
            # A worker that is at it sees what has become of the document, and removes it.
            await self._order(connection, org_id, document_id)

    async def stat(self, org_id: str, document_id: str, _name: str) -> File:
        """The bytes of a document, as a download needs to know them. Raises NotFound."""
        row = await self._db.fetchrow(SQL.bytes, org_id, document_id)
        if row is None:
            raise NotFound("The document has no bytes: it could not be read, and they were not kept.")
        at = row["created_at"]
        return File(_name, row["size"], row["media_type"], row["sha256"].hex(), row["blob"], None, None, at, at)

    @asynccontextmanager
    async def open(
        self, org_id: str, document_id: str, name: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[tuple[File, AsyncIterator[bytes]]]:
        """A document's bytes from `start` up to, and without, `end`, in pieces, all of one version. Raises NotFound."""
        for look in range(_LOOKS):
            file = await self.stat(org_id, document_id, name)
            opening = self._blobs.open(file.blob, start=start, end=file.size if end is None else min(end, file.size))
            try:
                pieces = await opening.__aenter__()
            except BlobMissing:
                if look + 1 == _LOOKS:
                    raise StoreUnavailable(f"The bytes of {document_id} are missing in the store.") from None
                continue  # another version may have taken its place in between
            try:
                yield file, pieces
            finally:
                await opening.__aexit__(None, None, None)
            return

    async def _store(self, org_id: str, name: str, media_type: str, data: AsyncIterator[bytes]) -> _Stored:
        """Looks at the beginning, then writes all of it."""
        beginning = bytearray()
        async for piece in data:
            beginning += piece
            if len(beginning) >= LOOK:
                break
        kind = format_of(name, media_type, bytes(beginning[:LOOK]))
        blob = f"{org_id}/documents/{uuid4().hex}"
        await self._db.execute(SQL.announce, blob)
        digest, size = hashlib.sha256(), 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal size
            for piece in (bytes(beginning),):
                size += len(piece)
                self._check_size(size)
                digest.update(piece)
                yield piece
            async for piece in data:
                size += len(piece)
                self._check_size(size)
                digest.update(piece)
                yield piece

        try:
            await self._blobs.write(blob, pieces())
        except BaseException:
            await self._discard(blob)
            raise
        charset = charset_of(media_type)
        told = MEDIA_TYPES[kind]
        told = f"{told}; charset={charset}" if charset and kind not in ("pdf", "docx") else told
        return _Stored(blob, kind, told, charset, size, digest.digest())

    async def _commit(
        self,
        db: Connection,
        place: Place,
        stored: _Stored,
        user_id: str | None,
        metadata: Mapping[str, Any] | None,
        document_id: str | None,
    ) -> tuple[str, bool]:
        """The document's id, and whether anything changes."""
        org_id = place.org_id
        await db.execute(SQL.lock, org_id)
        found = document_id or await db.fetchval(SQL.find, org_id, place.scope, place.owner or "", place.name)
        before: Document | None = None
        if found is not None:
            rows = await self._shown(Scope(org_id), True, found, None, 1, None, db)
            if not rows:
                raise no_document(found)
            before = rows[0]
            if (
                before.sha256 == stored.sha256.hex()
                and before.media_type == stored.media_type
                and (before.status != "failed" and (metadata is None or metadata == before.metadata))
            ):
                return before.id, False
        await self._check_room(db, org_id, before, stored.size)
        if not await db.fetchval(SQL.claim_blob, stored.blob):
            raise StoreUnavailable("The upload took too long.", suggestions=("upload it again",))
        told = None if metadata is None else orjson.dumps(metadata).decode()
        if before is None:
            found, version = new_id("doc"), 1
            fields = (stored.format, stored.media_type, stored.size, stored.sha256, user_id, told)
            await db.execute(SQL.add, org_id, found, place.scope, place.owner or "", place.name, *fields)
        else:
            fields = (stored.format, stored.media_type, stored.size, stored.sha256, user_id, told)
            version = await db.fetchval(SQL.replace, org_id, found, *fields)
            await db.execute(SQL.drop_versions, org_id, found)
        about = (stored.format, stored.media_type, stored.size, stored.sha256, stored.blob, stored.charset)
        await db.execute(SQL.add_version, org_id, found, version, *about)
        await self._order(db, org_id, str(found))
        return str(found), True

    async def _check_room(self, db: Connection, org_id: str, before: Document | None, size: int) -> None:
        usage = await db.fetchrow(SQL.usage, org_id)
        assert usage is not None
        given_up = 0 if before is None else await db.fetchval(SQL.bytes_of, org_id, before.id)
        if usage["bytes"] - given_up + size > self._limits.org_bytes:
            raise self._no_room()
        if before is None and usage["documents"] >= self._limits.per_org:
            raise self._no_room()

    async def _order(self, db: Connection, org_id: str, document_id: str) -> None:
        await add_job(db, JOB, document_id, org_id=org_id, attempts=ATTEMPTS)
        await db.execute(SQL.hasten, document_id)

    async def _shown(
        self,
        scope: Scope,
        everyone: bool,
        document_id: str | None,
        before: str | None,
        limit: int,
        kind: ScopeKind | None,
        db: Pool | Connection | None = None,
    ) -> _Shown:
        who = (everyone, scope.user_id, scope.agent_id, scope.session_id)
        rows = await (db or self._db).fetch(SQL.shown, scope.org_id, document_id, before, limit, *who, kind)
        return [_document(row) for row in rows]

    def _check_size(self, size: int) -> None:
        if size > self._limits.bytes:
            raise DocumentRefused(
                "too_large",
                f"A document may have at most {self._limits.bytes} bytes.",
                suggestions=("split it into several documents",),
            )

    def _no_room(self) -> NoDocumentRoom:
        return NoDocumentRoom(
            f"The org may have at most {self._limits.per_org} documents and {self._limits.org_bytes} bytes of them.",
            suggestions=("delete documents that are not needed any more",),
        )

    async def _discard(self, blob: str) -> None:
        """Deletes a blob that nothing names, now if that works: else a chore finds it."""
        try:
            await self._blobs.delete([blob])
            await self._db.execute(SQL.forget_blobs, [blob])
        except (StoreUnavailable, *UNAVAILABLE) as error:
            log.warning("blob_not_deleted", blob=blob, error=repr(error), effect="a chore deletes it")


def checked_name(name: str) -> str:
    """The name of a document, as of a file without folders.

    Raises:
        InvalidInput: empty, longer than 255 bytes, or with characters that no file's name has.
    """
    checked = checked_path(name, field="name")
    if "/" in checked:
        raise InvalidInput("The name must be that of a file, without folders.", field="name")
    return checked


def no_document(document_id: str) -> NotFound:
    """There is none that the asker may see."""
    return NotFound(f"There is no document {document_id}.", field="document_id")


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _document(row: asyncpg.Record) -> Document:
    fields = dict(row)
    job_status, not_before = fields.pop("job_status"), fields.pop("not_before")
    job_error, progress = (_json(fields.pop(name)) for name in ("job_error", "job_progress"))
    for name in ("metadata", "error", "facts"):
        fields[name] = _json(fields[name])
    fields["sha256"] = fields["sha256"].hex()
    status: Status = fields["status"]
    error = fields["error"]
    if status in ("queued", "parsing", "embedding"):
        if job_status == "queued" and job_error is not None:
            status, error = "queued", {**job_error, "retry_at": not_before.isoformat()}
        elif job_status not in ("queued", "running"):  # its workers died, each time
            told = {"code": "not_taken_in", "message": "The document could not be taken in: upload it again."}
            status, error = "failed", job_error or told
    fields |= {"status": status, "error": error, "progress": progress if status in ("parsing", "embedding") else None}
    return Document(**fields)


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
