"""One HTTP/1.1 connection of the model server, on a raw asyncio protocol: parsing, keep-alive, chunked answers.

Requests of a connection are answered one after the other, in one task. A client that leaves cancels the answer
it was getting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

MAX_BODY = 33_554_432  # bytes
_MAX_WAITING = 64  # pipelined requests

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request with its whole body; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


Handler = Callable[[HttpRequest, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """Parses requests, hands them to `handler`, and gives it the means to answer."""

    def __init__(
        self,
        handler: Handler,
        opened: Callable[[Connection], None],
        closed: Callable[[Connection, bool], None],
    ) -> None:
        self._handler = handler
        self._opened = opened
        self._closed = closed
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[HttpRequest] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._answering = False
        self._begin()

    # answering

    def respond(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.write("\r\n".join((*lines, "", "")).encode("latin-1") + body)

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        if self._transport is not None:
            self._transport.write(data)

    async def stream(self, data: bytes, *, content_type: str | None = None, last: bool = False) -> None:
        """A piece of a chunked answer, in one write; with `content_type` its head too, with `last` its end.

        Waits while the client is slower than the script.
        """
        head = _STREAM_HEAD % content_type.encode() if content_type is not None else b""
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self.write(head + chunk + (b"0\r\n\r\n" if last else b""))
        if not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """Closes the connection after what was written."""
        if self._transport is not None:
            self._transport.close()

    async def aborted(self) -> None:
        """Drops the connection and ends the answer in progress."""
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.respond(400, "text/plain", b"not an HTTP request that this server understands\n")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._closed(self, self._answering)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY:
            self.respond(413, "text/plain", b"the body is too large\n")
            self.close()

    def on_message_complete(self) -> None:
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            self._url.decode("latin-1").partition("?")[0],
            self._headers,
            bytes(self._body),
            self._parser.should_keep_alive(),
        )
        self._begin()
        if len(self._waiting) >= _MAX_WAITING:
            self.close()
            return
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    async def _serve(self) -> None:
        try:
            while self._waiting and self._transport is not None:
                request = self._waiting.popleft()
                self._answering = True
                await self._handler(request, self)
                self._answering = False
                if not request.keep_alive:
                    self.close()
        finally:
            self._task = None
