"""A lean HTTP/1.1 client: it shares the machine with what it measures, so it must cost little.

One request at a time on a keep-alive connection. What arrives is kept as it came, with the time of each piece;
looking into it is left for after the measurement.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from typing import Any, Literal, Self, cast

import httptools
import orjson

Stage = Literal["begun", "seen", "ended"]

_PATIENCE = 10.0


class BenchFailed(Exception):
    """Something did not run as it must for a figure to mean anything."""


class Exchange:
    """One request and its answer, with `time.perf_counter` times, 0.0 for what has not happened.

    Attributes:
        sent: the request was handed to the socket.
        begun: the first byte of the answer's body was there.
        seen: `watch` was in the body.
        ended: the answer was complete.
    """

    __slots__ = ("_arrivals", "_failure", "_waiter", "_watch", "begun", "body", "ended", "seen", "sent", "status")

    def __init__(self, watch: bytes | None) -> None:
        self._watch = watch
        self._arrivals: list[tuple[int, float]] = []
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.body = bytearray()
        self.status = 0
        self.sent = time.perf_counter()
        self.begun = 0.0
        self.seen = 0.0
        self.ended = 0.0

    async def until(self, stage: Stage) -> Self:
        """Waits for the stage, and returns the exchange itself.

        Raises BenchFailed if the connection breaks, or the stage is not there within ten seconds.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                while not getattr(self, stage):
                    if self._failure is not None:
                        raise BenchFailed(self._failure)
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError:
            raise BenchFailed(f"an answer stands still; it ends with {bytes(self.body[-500:])!r}") from None
        return self

    def expect(self, status: int) -> Self:
        """Raises BenchFailed if the answer has another status."""
        if self.status != status:
            raise BenchFailed(
                f"the answer is {self.status}, not {status}: {bytes(self.body[:500]).decode('utf-8', 'replace')}"
            )
        return self

    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)

    def arrival(self, needle: bytes, *, last: bool = False) -> float:
        """When the first (or last) `needle` in the body was complete. Raises BenchFailed if there is none."""
        place = self.body.rfind(needle) if last else self.body.find(needle)
        if place < 0:
            raise BenchFailed(f"no {needle!r} in an answer that begins with {bytes(self.body[:300])!r}")
        index = bisect_left(self._arrivals, place + len(needle), key=lambda arrival: arrival[0])
        return self._arrivals[index][1]

    def take(self, data: bytes) -> None:
        now = time.perf_counter()
        start = len(self.body)
        self.body += data
        self._arrivals.append((start + len(data), now))
        if not self.begun:
            self.begun = now
            self._wake()
        watch = self._watch
        if watch is not None and not self.seen and self.body.find(watch, max(0, start - len(watch))) >= 0:
            self.seen = now
            self._wake()

    def end(self) -> None:
        self.ended = time.perf_counter()
        self.begun = self.begun or self.ended
        self._wake()

    def fail(self, why: str) -> None:
        self._failure = why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection to one server; open it with `connect`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None

    def send(self, request: bytes, *, watch: bytes | None = None) -> Exchange:
        """Sends a request made with `Server.request`. The exchange before must have ended."""
        if self._transport is None or self._exchange is not None:
            raise BenchFailed("the connection is closed or busy")
        exchange = self._exchange = Exchange(watch)
        self._transport.write(request)
        return exchange

    async def call(self, request: bytes, *, status: int = 200) -> Exchange:
        """Sends a request and waits for the whole answer."""
        return (await self.send(request).until("ended")).expect(status)

    def close(self) -> None:
        """Drops the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are so in behaviour only

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is no HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(f"the connection broke: {exc or 'closed by the server'}")

    def _fail(self, why: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail(why)

    # httptools

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.take(data)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end()


class Server:
    """Where to connect to, and how requests to it look."""

    def __init__(self, host: str, port: int, api_key: str) -> None:
        self._host = host
        self._port = port
        self._head = f"host: {host}:{port}\r\nauthorization: Bearer {api_key}\r\n"

    async def connect(self) -> Connection:
        """A new connection."""
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    def request(self, method: str, path: str, body: Any = None, *, stream: bool = False) -> bytes:
        """A request with a JSON body, if any; `stream` asks for server-sent events."""
        accept = "text/event-stream" if stream else "application/json"
        head = f"{method} {path} HTTP/1.1\r\n{self._head}accept: {accept}\r\n"
        if body is None:
            return f"{head}\r\n".encode()
        data = orjson.dumps(body)
        return f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
