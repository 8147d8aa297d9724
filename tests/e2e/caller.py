"""A caller of the HTTP API: what a web application would do, with the bytes it got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; `frame` are its bytes as they came."""

    seq: int
    type: str
    data: dict[str, Any]
    frame: bytes


@dataclass(slots=True)
class Stream:
    """An open event stream. Comments and `retry:` are read over; `events` holds what has come so far."""

    answer: aiohttp.ClientResponse
    events: list[Event] = field(default_factory=list)
    ended: bool = False
    _rest: bytes = b""
    _read: int = 0

    @property
    def frames(self) -> bytes:
        """The bytes of all events so far."""
        return b"".join(event.frame for event in self.events)

    async def next(self) -> Event | None:
        """The next event; None when the stream has ended."""
        while self._read == len(self.events):
            chunk = await self.answer.content.readany()
            if not chunk:
                assert not self._rest, f"the stream ended within a frame: {self._rest!r}"
                self.ended = True
                return None
            *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
            self.events += [_event(block) for block in blocks if block.startswith(b"id: ")]
        self._read += 1
        return self.events[self._read - 1]

    async def until(self, type: str, **fields: Any) -> Event:
        """The next event of this type and with these fields; those before it are read over."""
        while (event := await self.next()) is not None:
            if event.type == type and all(event.data.get(name) == value for name, value in fields.items()):
                return event
        raise AssertionError(f"the stream ended without {type} {fields or ''}: {[event.type for event in self.events]}")

    async def rest(self) -> list[Event]:
        """Reads to the end of the stream; all events of it."""
        while await self.next() is not None:
            pass
        return self.events


def _event(block: bytes) -> Event:
    lines = block.split(b"\n")
    assert len(lines) == 3, f"not a frame of ours: {block!r}"
    id, type, data = (line.partition(b": ")[2] for line in lines)
    fields = orjson.loads(data)
    assert int(id) == fields["seq"]
    return Event(int(id), type.decode(), fields, block + b"\n\n")


class Caller:
    """Calls one API process with one key."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self.url = url
        self.key = key

    def at(self, url: str) -> Caller:
        """The same caller, at another API process."""
        return Caller(self._session, url, self.key)

    def as_holder_of(self, key: str) -> Caller:
        """Another caller, at the same API process."""
        return Caller(self._session, self.url, key)

    async def call(
        self, method: str, path: str, body: Any = None, *, expect: int | None = None, **headers: str
    ) -> Answer:
        """One request; `expect` is the status it must get. Headers are named with _ for -."""
        data = None if body is None else orjson.dumps(body)
        async with self._session.request(method, self.url + path, data=data, headers=self._headers(headers)) as got:
            answer = Answer(got.status, got.headers, await got.read())
        assert expect is None or answer.status == expect, (answer.status, answer.body)
        return answer

    async def get(self, path: str, *, expect: int | None = 200, **headers: str) -> Any:
        return (await self.call("GET", path, expect=expect, **headers)).json()

    async def post(self, path: str, body: Any = None, *, expect: int | None = None, **headers: str) -> Answer:
        return await self.call("POST", path, body, expect=expect, **headers)

    async def agent(self, **fields: Any) -> str:
        """Makes an agent; its id. `model` is a script's name."""
        if isinstance(fields.get("model"), str):
            fields["model"] = {"name": fields["model"]}
        answer = await self.post("/v1/agents", {"name": f"agent {id(fields)}", **fields}, expect=201)
        return str(answer.json()["id"])

    async def session(self, **fields: Any) -> str:
        """Makes a session; its id."""
        return str((await self.post("/v1/sessions", fields, expect=201)).json()["id"])

    async def start(self, input: str = "hello", *, session: str | None = None, **fields: Any) -> dict[str, Any]:
        """Takes a run in without following it; the run."""
        path = f"/v1/sessions/{session}/runs" if session else "/v1/runs"
        answer = await self.post(path, {"input": input, **fields}, expect=202)
        run: dict[str, Any] = answer.json()
        assert answer.headers["Location"] == f"/v1/runs/{run['id']}"
        return run

    async def finished(self, run_id: str, *, timeout: float = 30) -> dict[str, Any]:
        """The run once it has ended."""
        run: dict[str, Any] = await self.get(f"/v1/runs/{run_id}/wait?timeout={timeout:g}")
        assert run["finished_at"], f"the run has not ended: {run}"
        return run

    async def run(self, input: str = "hello", *, session: str | None = None, **fields: Any) -> dict[str, Any]:
        """Takes a run in and waits for its end; the run."""
        return await self.finished((await self.start(input, session=session, **fields))["id"])

    @asynccontextmanager
    async def following(
        self,
        input: str = "hello",
        *,
        session: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> AsyncIterator[Stream]:
        """Takes a run in and gets its stream as the answer."""
        path = f"/v1/sessions/{session}/runs" if session else "/v1/runs"
        body = orjson.dumps({"input": input, **fields})
        accept = {"Accept": "text/event-stream", **(headers or {})}
        async with self._session.post(self.url + path, data=body, headers=self._headers(accept)) as answer:
            assert answer.status == 200, (answer.status, await answer.read())
            yield Stream(answer)

    @asynccontextmanager
    async def stream(self, path: str, *, key: bool = True, **headers: str) -> AsyncIterator[Stream]:
        """Opens an event stream; without `key` only what is in the URL gives leave."""
        sent = self._headers(headers)
        if not key:
            del sent["Authorization"]
        async with self._session.get(self.url + path, headers=sent) as answer:
            assert answer.status == 200, (answer.status, await answer.read())
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            yield Stream(answer)

    async def events(self, run_id: str, *, after: int | None = None) -> list[Event]:
        """All events of a run from `after` on, up to the end of its stream."""
        query = "" if after is None else f"?after={after}"
        async with self.stream(f"/v1/runs/{run_id}/events{query}") as stream:
            return await stream.rest()

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in given.items()}
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **named}


@asynccontextmanager
async def calling(url: str, key: str) -> AsyncIterator[Caller]:
    """A caller for the time of the block."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=40)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Caller(session, url, key)
    await asyncio.sleep(0)  # lets closed connections go
