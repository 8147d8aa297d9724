"""The model server: `/v1/chat/completions`, `/v1/embeddings` and `/v1/models` on loopback.

It plays what its brain scripts. Without delays it writes many frames at a time, so that it is not what a
measurement measures; what it received is kept for tests to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from cli.rehearsal import embeddings
from cli.rehearsal.connection import Connection, HttpRequest
from cli.rehearsal.protocol import Frames, read_request
from cli.rehearsal.script import Brain, BreakOff, Hang, HangUp, HttpError, NotHttp, Raw, Reply

_KEPT_REQUESTS = 1000
_BATCH = 256  # frames in one write
_SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as the server saw it; `body` is decoded JSON, or None where it was none."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class ModelServer:
    """Serves one brain. `async with` starts and stops it.

    Attributes:
        requests: the last 1000 requests, oldest first.
        accepted: how many connections were made to it.
        hangups: how many answers were cut short by the client.
    """

    def __init__(self, brain: Brain, host: str = "127.0.0.1", port: int = 0) -> None:
        self._brain = brain
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        self.requests: deque[Received] = deque(maxlen=_KEPT_REQUESTS)
        self.accepted = 0
        self.hangups = 0

    @property
    def url(self) -> str:
        """The base URL for clients, such as `http://127.0.0.1:1234/v1`. Known once started."""
        return f"http://{self._host}:{self._port}/v1"

    async def start(self) -> None:
        """Listens; with port 0 on a free port.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._answer, self._opened, self._closed),
            self._host,
            self._port,
            backlog=4096,
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and drops all connections."""
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*(connection.aborted() for connection in list(self._connections)))
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def until_hangups(self, count: int) -> None:
        """Waits until clients have cut short so many answers in all."""
        if self.hangups < count:
            reached = asyncio.get_running_loop().create_future()
            self._awaited.append((count, reached))
            await reached

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.accepted += 1

    def _closed(self, connection: Connection, in_answer: bool) -> None:
        self._connections.discard(connection)
        self.hangups += in_answer
        for count, reached in self._awaited:
            if self.hangups >= count and not reached.done():
                reached.set_result(None)

    async def _answer(self, request: HttpRequest, connection: Connection) -> None:
        body = None
        with contextlib.suppress(orjson.JSONDecodeError):
            body = orjson.loads(request.body)
        self.requests.append(Received(request.method, request.path, request.headers, body))
        try:
            match request.method, request.path.rstrip("/"):
                case "POST", "/v1/chat/completions":
                    await self._complete(body, connection)
                case "POST", "/v1/embeddings":
                    _embed(body, connection)
                case "GET", "/v1/models":
                    model = {"id": "rehearsal", "object": "model", "created": 0, "owned_by": "longhaul"}
                    _json(connection, 200, {"object": "list", "data": [model]})
                case method, path:
                    _refuse(connection, 404, f"there is no {method} {path} here")
        except Exception as error:  # a brain that fails must not look like a dead server
            _refuse(connection, 500, f"the brain failed: {error!r}")

    async def _complete(self, body: Any, connection: Connection) -> None:
        try:
            request = read_request(body)
        except ValueError as error:
            _refuse(connection, 400, str(error))
            return
        reply = self._brain(request)
        frames = Frames(request, reply)
        match reply.fault:
            case HttpError(status, content, headers):
                if reply.first_delay:
                    await asyncio.sleep(reply.first_delay)
                data = content if isinstance(content, bytes) else orjson.dumps(content)
                kind = "text/html" if isinstance(content, bytes) else "application/json"
                connection.respond(status, kind, data, headers)
            case Raw() as raw:
                await _play_raw(raw, connection)
            case NotHttp(data):
                connection.write(data)
                connection.close()
            case HangUp():
                connection.close()
            case Hang(None):
                await asyncio.Event().wait()
            case _ if request.stream:
                await _play(reply, frames, connection)
            case _:
                if reply.first_delay:
                    await asyncio.sleep(reply.first_delay)
                connection.respond(200, "application/json", frames.completion())


async def _play(reply: Reply, frames: Frames, connection: Connection) -> None:
    if reply.first_delay:
        await connection.stream(b"", content_type=_SSE)
        await asyncio.sleep(reply.first_delay)
    pending = [frames.head()]
    kind = None if reply.first_delay else _SSE
    cut = reply.fault.after if isinstance(reply.fault, BreakOff | Hang) else None
    for number, frame in enumerate(frames.script()):
        if number == cut:
            break
        if reply.token_delay and number:
            await connection.stream(b"".join(pending), content_type=kind)
            kind = None
            pending.clear()
            await asyncio.sleep(reply.token_delay)
        pending.append(frame)
        if len(pending) >= _BATCH:
            await connection.stream(b"".join(pending), content_type=kind)
            kind = None
            pending.clear()
    if cut is None:
        pending.append(frames.tail())
    await connection.stream(b"".join(pending), content_type=kind, last=cut is None)
    if isinstance(reply.fault, BreakOff):
        connection.close()
    elif isinstance(reply.fault, Hang):
        await asyncio.Event().wait()


async def _play_raw(raw: Raw, connection: Connection) -> None:
    await connection.stream(b"", content_type=raw.content_type)
    for number, piece in enumerate(raw.pieces):
        if number:
            await asyncio.sleep(raw.pause)
        await connection.stream(piece)
    if raw.stay:
        await asyncio.Event().wait()
    await connection.stream(b"", last=True)


def _embed(body: Any, connection: Connection) -> None:
    try:
        _json(connection, 200, embeddings.answer(body))
    except ValueError as error:
        _refuse(connection, 400, str(error))


def _json(connection: Connection, status: int, document: Mapping[str, Any]) -> None:
    connection.respond(status, "application/json", orjson.dumps(document))


def _refuse(connection: Connection, status: int, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    _json(connection, status, {"error": error})
