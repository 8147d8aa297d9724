"""The command line reads an event stream whole, however it is cut and however often it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cli.client import Client, Event
from cli.errors import Refused
from cli.sse import Frame, FrameParser

_STREAM = (
    'retry: 500\n\n: a comment\n\nid: 1\nevent: message_chunk\ndata: {"text":"né"}\n\n'
    "id: 2\r\nevent: done\r\ndata: {\r\ndata: }\r\n\r\nid: 3\rdata:x\r\r"
).encode()
_FRAMES = [Frame("1", "message_chunk", '{"text":"né"}'), Frame("2", "done", "{\n}"), Frame("3", "message", "x")]


@given(cuts=st.lists(st.integers(0, len(_STREAM))))
def test_a_stream_reads_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    parser = FrameParser()
    edges = [0, *sorted(cuts), len(_STREAM)]
    frames = [f for a, b in pairwise(edges) for f in parser.feed(_STREAM[a:b])]
    # The last CR may be half of a CRLF, so its frame waits for what follows.
    frames += parser.feed(b"\n")
    assert frames == _FRAMES


def _frame(seq: int, kind: str) -> bytes:
    data = orjson.dumps({"seq": seq, "run_id": "run_1", "session_id": "ses_1", "status": "succeeded"})
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, kind.encode(), data)


class BreakingServer:
    """Serves one run of five events over real HTTP and hangs up after each of them."""

    def __init__(self) -> None:
        self.submissions: list[str] = []
        self.resumed_after: list[str] = []
        self.refuse_first = 0
        self.seen_after: int | None = None  # the resume that is told that there is no more
        self.refusal = 503

    async def submit(self, request: web.Request) -> web.StreamResponse:
        self.submissions.append(request.headers["Idempotency-Key"])
        if len(self.submissions) <= self.refuse_first:
            problem = {"title": "Busy", "detail": "come back", "suggestions": ["wait"]}
            return web.json_response(problem, status=self.refusal)
        return await self._one(request, 1)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        self.resumed_after.append(request.headers["Last-Event-ID"])
        if len(self.resumed_after) == self.seen_after:
            return web.Response(status=204)
        return await self._one(request, int(request.headers["Last-Event-ID"]) + 1)

    async def _one(self, request: web.Request, seq: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if seq > 1:
            await response.write(_frame(seq - 1, "state_entered"))  # one that was seen already
        await response.write(_frame(seq, "done" if seq == 5 else "state_entered"))
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/runs", self.submit)
        app.router.add_get("/v1/runs/run_1/events", self.resume)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def _followed(url: str) -> list[Event]:
    async with Client(url, "key") as client:
        return [event async for event in client.run({"input": "x"})]


async def test_a_stream_that_breaks_after_each_event_is_followed_without_gap_or_double() -> None:
    server = BreakingServer()
    async with server.serving() as url:
        events = await _followed(url)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].type == "done"
    assert server.resumed_after == ["1", "2", "3", "4"]


async def test_submitting_again_carries_the_same_idempotency_key() -> None:
    server = BreakingServer()
    server.refuse_first = 2
    async with server.serving() as url:
        await _followed(url)
    assert len(server.submissions) == 3
    assert len(set(server.submissions)) == 1


async def test_a_refusal_is_told_with_its_problem_and_not_tried_again() -> None:
    server = BreakingServer()
    server.refuse_first, server.refusal = 9, 401
    async with server.serving() as url:
        with pytest.raises(Refused, match=r"refuses \(401\): Busy: come back") as caught:
            await _followed(url)
    assert caught.value.suggestions == ("wait",)
    assert len(server.submissions) == 1


async def test_a_stream_without_an_end_is_over_when_the_api_says_that_all_was_seen() -> None:
    server = BreakingServer()
    server.seen_after = 2
    async with server.serving() as url:
        events = await _followed(url)
    assert [event.seq for event in events] == [1, 2]
