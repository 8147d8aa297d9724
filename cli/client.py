"""A small client of the HTTP API: JSON calls, and an event stream that survives dropped connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiohttp
import orjson

from cli.errors import Refused
from cli.sse import Frame, FrameParser

_TRIES = 8  # in a row, of a stream that was there before
_FIRST_TRIES = 5  # some three seconds: an API that is just being started again
_FIRST_PAUSE = 0.2
# The server sends a comment every 15 s, so a longer silence means that the connection is dead.
_SILENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a session's log. `fields` holds the whole JSON object of the event."""

    seq: int
    type: str
    fields: Mapping[str, Any]


class Client:
    """`async with Client(url, api_key) as client`. Errors of all methods: Refused."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POSTs JSON and returns the JSON of the answer."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
        try:
            async with self._open.post(
                self._url + path, data=orjson.dumps(body), headers=headers, timeout=aiohttp.ClientTimeout(30)
            ) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    raise _refusal(answer.status, content)
                return dict(orjson.loads(content))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(self._url, error) from error

    async def run(self, body: Mapping[str, Any], path: str = "/v1/runs") -> AsyncIterator[Event]:
        """Submits a run and yields its events to the last, each once and in order.

        A connection that drops is opened again behind the last event seen; submitting again is safe, because
        both attempts carry one idempotency key.
        """
        key, run_id, last, failures = uuid4().hex, "", 0, 0
        while True:
            try:
                async with self._stream(body, path, key, run_id, last) as answer:
                    if answer.status >= 500 or answer.status == 429:
                        raise _Again(_refusal(answer.status, await answer.read()))
                    if answer.status >= 400:
                        raise _refusal(answer.status, await answer.read())
                    if answer.status == 204:
                        return  # the run has ended, and all that is kept of its log has been seen
                    run_id = run_id or _run_in(answer.headers.get("Location", ""))
                    async for event in _events(answer):
                        if event.seq <= last:
                            continue
                        last, failures = event.seq, 0
                        run_id = run_id or str(event.fields.get("run_id", ""))
                        yield event
                        if event.type == "done" and event.fields.get("run_id") == run_id:
                            return
                failures += 1
                trouble = Refused("The event stream ends before the run does.")
            except _Again as again:
                failures += 1
                trouble = again.refusal
            except (aiohttp.ClientError, TimeoutError) as error:
                failures += 1
                trouble = _unreachable(self._url, error)
            if failures >= (_TRIES if run_id else _FIRST_TRIES):
                raise trouble
            await asyncio.sleep(min(_FIRST_PAUSE * 2 ** (failures - 1), 5.0))

    def _stream(
        self, body: Mapping[str, Any], path: str, key: str, run_id: str, last: int
    ) -> aiohttp.client._RequestContextManager:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENCE_SECONDS)
        headers = {"Accept": "text/event-stream"}
        if run_id:
            headers["Last-Event-ID"] = str(last)
            return self._open.get(f"{self._url}/v1/runs/{run_id}/events", headers=headers, timeout=timeout)
        headers |= {"Content-Type": "application/json", "Idempotency-Key": key}
        return self._open.post(self._url + path, data=orjson.dumps(body), headers=headers, timeout=timeout)

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use it as a context manager")
        return self._session

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()


class _Again(Exception):
    """An answer that says to come back later."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    parser = FrameParser()
    async for chunk in answer.content.iter_any():
        for frame in parser.feed(chunk):
            event = _event(frame)
            if event is not None:
                yield event


def _event(frame: Frame) -> Event | None:
    try:
        fields = orjson.loads(frame.data)
        return Event(int(frame.id), frame.event, fields)
    except ValueError:
        return None  # not one of ours: an event without a number or without JSON


def _run_in(location: str) -> str:
    name = location.rstrip("/").rpartition("/")[2]
    return name if name.startswith("run_") else ""


def _refusal(status: int, content: bytes) -> Refused:
    """The problem document of an answer, in words."""
    try:
        problem = orjson.loads(content)
        title, detail = str(problem.get("title", "")), str(problem.get("detail", ""))
        suggestions = [str(item) for item in problem.get("suggestions", ())]
    except (ValueError, AttributeError, TypeError):
        title, detail, suggestions = "", content[:300].decode("utf-8", "replace"), []
    words = ": ".join(part for part in (title, detail) if part)
    return Refused(f"The API refuses ({status}): {words}", suggestions=suggestions)


def _unreachable(url: str, error: Exception) -> Refused:
    return Refused(
        f"{url} can't be reached: {error or type(error).__name__}",
        suggestions=("check that the stack runs: longhaul dev",),
    )
