"""The tools `http_post` and `http_put`, over a real server on loopback, called as a model calls them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from orchestrator.egress import EgressClient
from orchestrator.tools.http_send import HttpPost, HttpPut
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Send = Callable[..., Awaitable[ToolOutcome]]
KEY = "run_1:2-act:call_1"
CONTEXT = ToolContext("org_1", None, None, "ses_1", "run_1", "call_1", KEY)
BOTH = pytest.mark.parametrize("tool", ["http_post", "http_put"])


async def echo(request: web.Request) -> web.StreamResponse:
    headers = {name: request.headers.get(name) for name in ("Content-Type", "Idempotency-Key", "X-Own")}
    return web.json_response({"method": request.method, "body": await request.text(), **headers})


@asynccontextmanager
async def sending(*ports: int, timeout: float = 5.0) -> AsyncIterator[Send]:
    """Calls a tool by name; `ports` of loopback may be reached."""
    egress = EgressClient(allow=[f"127.0.0.1:{port}" for port in ports], timeout=timeout)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    toolbox = Toolbox([HttpPost(egress), HttpPut(egress)], sleep=sleep)

    async def send(tool: str, **arguments: Any) -> ToolOutcome:
        return await toolbox.call(tool, arguments, CONTEXT, allowed=["http_post", "http_put"])

    try:
        yield send
    finally:
        await egress.aclose()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    app = web.Application(client_max_size=8_388_608)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def breaking_off(after: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that reads a request, answers with these bytes and hangs up; and the requests' heads."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(after)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def sent(tool: str, **arguments: Any) -> dict[str, Any]:
    """What the echoing server got."""
    async with serving(echo) as port, sending(port) as send:
        outcome = await send(tool, url=f"http://127.0.0.1:{port}/", **arguments)
    assert outcome.status == "ok", outcome.result
    report = json.loads(outcome.result)
    assert (report["status"], report["content_type"]) == (200, "application/json")
    got: dict[str, Any] = json.loads(report["text"])
    return got


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@BOTH
async def test_json_is_sent_with_the_calls_idempotency_key(tool: str) -> None:
    assert await sent(tool, body={"tea": ["green", 2]}) == {
        "method": tool.removeprefix("http_").upper(),
        "body": '{"tea":["green",2]}',
        "Content-Type": "application/json",
        "Idempotency-Key": KEY,
        "X-Own": None,
    }


@BOTH
async def test_a_text_is_sent_as_it_is(tool: str) -> None:
    got = await sent(tool, body="naïve", headers={"X-Own": "mine"})
    assert (got["body"], got["Content-Type"], got["X-Own"]) == ("naïve", "text/plain; charset=utf-8", "mine")


async def test_the_caller_may_say_what_kind_of_text_it_is() -> None:
    got = await sent("http_post", body="<tea/>", headers={"content-type": "application/xml"})
    assert (got["body"], got["Content-Type"]) == ("<tea/>", "application/xml")


async def test_a_body_is_not_needed() -> None:
    got = await sent("http_post")
    assert (got["body"], got["Idempotency-Key"]) == ("", KEY)


@BOTH
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://169.254.169.254/"}, "private or special address"),
        ({"url": "http://localhost:1/"}, "private or special address"),
        ({"url": "file:///etc/passwd"}, "only http"),
        ({"url": "http://user:password@example.com/"}, "user names and passwords"),
        ({"url": ""}, "- url:"),
        ({"url": "http://example.com/", "headers": {"Host": "x"}}, "the header Host cannot be set"),
        ({"url": "http://example.com/", "headers": {"idempotency-KEY": "x"}}, "Idempotency-Key is set by the tool"),
        ({"url": "http://example.com/", "body": 5}, "- body"),
        ({"url": "http://example.com/", "body": "x" * 1_048_577}, "longer than 1048576 bytes"),
        ({"url": "http://example.com/", "body": ["é" * 600_000]}, "longer than 1048576 bytes"),
        ({"url": "http://example.com/", "method": "DELETE"}, "- method:"),
    ],
)
async def test_a_wrong_call_is_explained_to_the_model_and_nothing_is_sent(
    tool: str, arguments: dict[str, Any], words: str
) -> None:
    async with sending() as send:
        outcome = await send(tool, **arguments)
    assert outcome.status == "error"
    assert words in outcome.result


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_nothing_is_sent_where_it_points(tool: str, status: int) -> None:
    elsewhere = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal elsewhere
        if request.path == "/new":
            elsewhere += 1
        return web.Response(status=status, headers={"Location": "/new"}, text="over there")

    async with serving(handler) as port, sending(port) as send:
        outcome = await send(tool, url=f"http://127.0.0.1:{port}/", body="x")
    report = json.loads(outcome.result)
    assert (outcome.status, report["status"], report["location"]) == ("ok", status, "/new")
    assert report["text"] == "over there"
    assert elsewhere == 0


@BOTH
async def test_an_error_status_is_an_answer(tool: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="not now")

    async with serving(handler) as port, sending(port) as send:
        outcome = await send(tool, url=f"http://127.0.0.1:{port}/")
    assert (outcome.status, json.loads(outcome.result)["status"]) == ("ok", 503)


@BOTH
async def test_what_was_never_sent_is_tried_again_and_then_an_error(tool: str) -> None:
    port = a_free_port()
    async with sending(port) as send:
        outcome = await send(tool, url=f"http://127.0.0.1:{port}/")
    assert outcome.status == "error"
    assert "no connection" in outcome.result
    assert "(tried 2 times)" in outcome.result


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(b"hello\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", id="half an answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx", id="not readable"),
    ],
)
async def test_a_post_that_was_sent_and_not_answered_is_unknown_and_not_repeated(answer: bytes) -> None:
    async with breaking_off(answer) as (port, seen), sending(port) as send:
        outcome = await send("http_post", url=f"http://127.0.0.1:{port}/")
    assert (outcome.status, len(seen)) == ("unknown", 1)
    assert "find out first" in outcome.result


async def test_a_put_that_was_not_answered_is_repeated_under_the_same_key() -> None:
    async with breaking_off() as (port, seen), sending(port) as send:
        outcome = await send("http_put", url=f"http://127.0.0.1:{port}/")
    assert outcome.status == "error"
    assert len(seen) >= 2
    assert all(f"Idempotency-Key: {KEY}\r\n".encode() in head for head in seen)


async def test_a_post_whose_answer_does_not_come_in_time_is_unknown() -> None:
    hold = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await hold.wait()
        return web.Response()

    async with serving(handler) as port, sending(port, timeout=0.2) as send:
        outcome = await send("http_post", url=f"http://127.0.0.1:{port}/")
    assert outcome.status == "unknown"


async def test_a_post_whose_name_does_not_resolve_in_time_was_not_sent() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    egress = EgressClient(resolve=never, timeout=0.1)
    toolbox = Toolbox([HttpPost(egress)])
    outcome = await toolbox.call("http_post", {"url": "http://tea.example/"}, CONTEXT, allowed=["http_post"])
    await egress.aclose()
    assert outcome.status == "error"
    assert "(tried 2 times)" in outcome.result


async def test_posts_to_a_server_that_drops_idle_connections_all_arrive() -> None:
    """A connection that is kept for later may be closed by the server just when it is used again."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n")
        await writer.drain()
        await reader.read(1)  # whatever comes next on this connection is not answered
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, sending(port) as send:
        outcomes = [await send("http_post", url=f"http://127.0.0.1:{port}/") for _ in range(3)]
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3
    assert seen == 3
