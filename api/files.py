"""`/v1/sessions/{id}/files`: what lies in a session's workspace, uploads and downloads.

Bytes stream through: an upload into the blob store, counted on the way, a download out of it. Neither is ever held as a
whole. Both may take as long as they need while something moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from pydantic import AwareDatetime, Field

from api.download import Download, etags
from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.intake import discard
from api.paging import PageQuery, page, read_cursor
from api.problems import invalid, refuse
from api.uploads import CLOSE, UPLOAD_SECONDS, Incoming, content_type_in, too_slow
from api.values import View
from kernel.errors import CallerError, NotFound
from kernel.file_paths import MAX_BYTES, checked_prefix
from kernel.file_quotas import FileTooLarge, NoRoom
from kernel.files import ABSENT, Author, File, FileChanged, Files
from kernel.postgres import Pool
from kernel.sessions import get_session


class FilesQuery(PageQuery):
    """Which files."""

    cursor: str | None = Field(default=None, max_length=1_500, description="`next_cursor` of the page before")
    prefix: str = Field(default="", max_length=MAX_BYTES, description="only paths that begin so, such as `reports/`")


class FileView(View):
    """A file."""

    path: str
    size: int = Field(description="bytes")
    content_type: str
    sha256: str
    etag: str = Field(description="another one after every write; quoted in the ETag header")
    user_id: str | None = Field(description="whose key or token wrote it last")
    run_id: str | None = Field(description="the run that wrote it last")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class FilePage(View):
    """Files by path."""

    data: list[FileView]
    next_cursor: str | None


class SessionFiles:
    """The endpoints of a session's files."""

    def __init__(self, db: Pool, files: Files) -> None:
        self._db = db
        self._files = files

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        many, tag = "/v1/sessions/{session_id}/files", "files"
        one = f"{many}/{{file_path}}"
        yield Endpoint(
            method="GET",
            path=many,
            handler=self.list,
            tag=tag,
            summary="List a session's files, by path",
            scope="read",
            query=FilesQuery,
            response=FilePage,
        )
        yield Endpoint(
            method="PUT",
            path=one,
            handler=self.upload,
            tag=tag,
            summary="Upload a file",
            description="The body is the file, of any type. Replaces the file that is there. `If-None-Match: *` "
            "uploads only what is not there yet, `If-Match` only over the version that it names. A file is stored as a "
            "whole or not at all. 413 says that it, or the session's files together, would be too large.",
            scope="write",
            response=FileView,
            also={201: FileView},
            problems=(409, 412),
            raw=True,
            request_headers=("If-Match", "If-None-Match"),
            seconds=None,
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.download,
            tag=tag,
            summary="Download a file",
            description="Always as an attachment, with the type that it was uploaded with. `If-None-Match` with the "
            "ETag of a copy answers 304 while the copy is good; `Range` gives a part.",
            scope="read",
            media_type="*/*",
            also={206: None, 304: None},
            problems=(416,),
            request_headers=("If-None-Match", "Range"),
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Delete a file",
            scope="write",
            status=204,
            problems=(412,),
            request_headers=("If-Match",),
        )

    async def list(self, call: Call[None, FilesQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        limit, prefix = call.query.limit, checked_prefix(call.query.prefix)
        session_id = call.path["session_id"]
        found = await self._files.list(
            call.org_id, session_id, prefix=prefix, after=cursor[0] if cursor else "", limit=limit + 1
        )
        if not found:
            await get_session(self._db, call.org_id, session_id)
        return Answer(page(found, limit, show=_shown, key=lambda file: (file.path,)))

    async def upload(self, call: Call[None, NoQuery]) -> Answer:
        session_id, path = call.path["session_id"], call.path["file_path"]
        announced = call.headers.get(b"content-length", b"")
        content_type = content_type_in(call.headers)
        body = Incoming(call.receive)
        clock = asyncio.timeout(UPLOAD_SECONDS)
        try:
            async with clock:
                file = await self._files.write(
                    call.org_id,
                    session_id,
                    path,
                    body.pieces(),
                    by=Author(call.principal.user_id),
                    content_type=content_type,
                    expected=await self._expected(call),
                    announced=int(announced) if announced.isdigit() and len(announced) < 19 else None,
                )
        except TimeoutError:
            if clock.expired():
                raise too_slow() from None
            raise  # Postgres did not answer
        except CallerError as error:
            # A client that waits for leave to send has not sent anything.
            if not body.ended and b"expect" not in call.headers:
                await discard(call.receive)
            if isinstance(error, FileTooLarge | NoRoom):
                raise refuse(413, error.code, error.message, suggestions=error.suggestions, headers=CLOSE) from None
            raise
        return Answer(_shown(file), 201 if file.created_at == file.updated_at else 200, (_etag(file),))

    async def download(self, call: Call[None, NoQuery]) -> Answer:
        where = call.org_id, call.path["session_id"], call.path["file_path"]
        await self._files.stat(*where)
        return Answer(app=Download(self._files, *where, call.headers))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        where = call.org_id, call.path["session_id"], call.path["file_path"]
        await self._files.delete(*where, by=Author(call.principal.user_id), expected=await self._expected(call))
        return Answer()

    async def _expected(self, call: Call[None, NoQuery]) -> str | None:
        """The version that the headers ask for."""
        unless, only = call.headers.get(b"if-none-match"), call.headers.get(b"if-match")
        if unless is not None and call.scope["method"] == "PUT":
            if unless.strip() != b"*":
                raise invalid(("If-None-Match", "must be * here"))
            return ABSENT
        if only is None:
            return None
        try:
            there = await self._files.stat(call.org_id, call.path["session_id"], call.path["file_path"])
        except NotFound as error:
            raise FileChanged("There is no such file any more.") from error
        if only.strip() != b"*" and there.etag not in etags(only):
            raise FileChanged(
                f"The file {there.path!r} is another version.", suggestions=("read it again and decide anew",)
            )
        return there.etag


def _etag(file: File) -> tuple[bytes, bytes]:
    return b"etag", f'"{file.etag}"'.encode()


def _shown(file: File) -> dict[str, Any]:
    return {
        "path": file.path,
        "size": file.size,
        "content_type": file.content_type,
        "sha256": file.sha256,
        "etag": file.etag,
        "user_id": file.user_id,
        "run_id": file.run_id,
        "created_at": file.created_at,
        "updated_at": file.updated_at,
    }
