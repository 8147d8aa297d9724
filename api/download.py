"""The answer that streams a file: whole, a part of it, or the word that the caller's copy is still good (RFC 9110).

A browser never shows what comes from here as a page of ours: it is an attachment, its type is not guessed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import quote

import structlog
from starlette.types import Receive, Scope, Send

from api.intake import Headers
from api.problems import refuse
from kernel.errors import StoreUnavailable
from kernel.files import File
from kernel.postgres import UNAVAILABLE

log = structlog.get_logger(__name__)

_RANGE: Final = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)
_ETAG: Final = re.compile(rb'(?<!W/)"([!-~]*?)"')
_WEAK_ETAG: Final = re.compile(rb'"([!-~]*?)"')
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9 ._()-]")


class Holder(Protocol):
    """What holds the files of something, such as of a session or a document: `kernel.files.Files` says how."""

    async def stat(self, org_id: str, holder_id: str, path: str, /) -> File: ...

    def open(
        self, org_id: str, holder_id: str, path: str, /, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[tuple[File, AsyncIterator[bytes]]]: ...


class Download:
    """An ASGI application that sends one file. `headers` are the request's."""

    def __init__(self, files: Holder, org_id: str, holder_id: str, path: str, headers: Headers) -> None:
        self._files = files
        self._where = org_id, holder_id, path
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = await self._files.stat(*self._where)
        if _is_current(self._headers, seen):
            await _send_head(send, 304, [], seen)
            return
        part = self._part(seen)
        start, end = part or (0, None)
        async with self._files.open(*self._where, start=start, end=end) as (file, pieces):
            if (
                part is not None and file.etag != seen.etag
            ):  # it was replaced in between: the part is of another version
                raise StoreUnavailable("The file is being replaced.")
            length = file.size if part is None else part[1] - part[0]
            headers = [(b"content-length", b"%d" % length), (b"content-type", file.content_type.encode())]
            if part is not None:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (part[0], part[1] - 1, file.size)))
            headers.append((b"content-disposition", _attachment(file.path)))
            if scope["method"] == "HEAD":
                await _send_head(send, 200 if part is None else 206, headers, file)
                return
            # Something must wait here: `send` never says that the client has gone.
            leaving = asyncio.ensure_future(_gone(receive))
            begun = False
            try:
                async for piece in pieces:
                    if not begun:  # the first piece is there, so the store answers
                        await _start(send, 200 if part is None else 206, headers, file)
                        begun = True
                    if leaving.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if not begun:
                    await _start(send, 200, headers, file)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except (StoreUnavailable, *UNAVAILABLE) as error:
                if not begun:
                    raise
                # The answer is shorter than announced, so the server cuts the connection and the client notices.
                log.warning("download_broke_off", error=repr(error))
            finally:
                leaving.cancel()

    def _part(self, file: File) -> tuple[int, int] | None:
        """The part that is asked for, as (start, end); None for all of it."""
        wanted = _RANGE.fullmatch(self._headers.get(b"range", b"").strip())
        if wanted is None or wanted.groups() == (b"", b""):
            return None
        condition = self._headers.get(b"if-range")
        if condition is not None and file.etag not in etags(condition):
            return None
        first, last = wanted.groups()
        if first:
            start, end = int(first), min(int(last) + 1, file.size) if last else file.size
            if last and int(last) < start:
                return None
        else:
            start, end = max(0, file.size - int(last)), file.size
        if start >= end:
            raise refuse(
                416,
                "range_not_satisfiable",
                f"The file has {file.size} bytes.",
                headers=((b"content-range", b"bytes */%d" % file.size),),
            )
        return start, end


def etags(header: bytes) -> set[str]:
    """The strong entity tags in a header."""
    return {found.decode() for found in _ETAG.findall(header)}


def _is_current(headers: Headers, file: File) -> bool:
    given = headers.get(b"if-none-match")
    if given is None:
        return False
    return given.strip() == b"*" or file.etag.encode() in _WEAK_ETAG.findall(given)


def _attachment(path: str) -> bytes:
    name = path.rpartition("/")[2]
    plain = _UNSAFE.sub("_", name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{exact}'.encode()


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]], file: File) -> None:
    always = [
        (b"etag", f'"{file.etag}"'.encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"private, no-cache"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers + always})


async def _send_head(send: Send, status: int, headers: list[tuple[bytes, bytes]], file: File) -> None:
    await _start(send, status, headers, file)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
