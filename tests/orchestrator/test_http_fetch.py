"""The tool `http_fetch`, over a real server on loopback, called as a model calls it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from orchestrator.egress import EgressClient
from orchestrator.tools.http_fetch import HttpFetch
from orchestrator.tools.readable import readable
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTEXT = ToolContext("org_1", None, None, "ses_1", "run_1", "call_1", "run_1:2:call_1")


def page(body: bytes | str, content_type: str = "text/html; charset=utf-8") -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, headers={"Content-Type": content_type})

    return handler


@asynccontextmanager
async def fetching(handler: Handler) -> AsyncIterator[tuple[str, Callable[..., Awaitable[ToolOutcome]]]]:
    """A server, and a function that calls the tool on it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    egress = EgressClient(allow=[f"127.0.0.1:{port}"], timeout=5)
    toolbox = Toolbox([HttpFetch(egress)])

    async def fetch(**arguments: Any) -> ToolOutcome:
        return await toolbox.call(
            "http_fetch", {"url": f"http://127.0.0.1:{port}/"} | arguments, CONTEXT, allowed=["http_fetch"]
        )

    try:
        yield f"http://127.0.0.1:{port}", fetch
    finally:
        await egress.aclose()
        await runner.cleanup()


async def fetched(handler: Handler, **arguments: Any) -> dict[str, Any]:
    async with fetching(handler) as (_, fetch):
        outcome = await fetch(**arguments)
    assert outcome.status == "ok", outcome.result
    report: dict[str, Any] = json.loads(outcome.result)
    return report


# reading pages


async def test_a_page_is_reported_with_status_type_final_url_and_text() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/old":
            raise web.HTTPFound("/new")
        return web.Response(text="<title>Tea</title><p>Hot &amp; <b>strong</b>", content_type="text/html")

    async with fetching(handler) as (origin, fetch):
        outcome = await fetch(url=f"{origin}/old")
    assert json.loads(outcome.result) == {
        "status": 200,
        "content_type": "text/html",
        "url": f"{origin}/new",
        "text": "# Tea\n\nHot & strong",
    }


async def test_an_error_status_is_reported_with_its_text() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="no such tea")

    report = await fetched(handler)
    assert (report["status"], report["text"]) == (404, "no such tea")


async def test_json_is_given_as_it_is() -> None:
    assert (await fetched(page('{"a": "<b>"}', "application/json")))["text"] == '{"a": "<b>"}'


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("naïve".encode(), "text/plain; charset=utf-8", "naïve"),
        ("naïve".encode("latin-1"), "text/plain; charset=ISO-8859-1", "naïve"),
        ("日本".encode("shift_jis"), 'text/plain; charset="shift_jis"', "日本"),
        ("日本".encode("utf-16"), "text/plain; charset=utf-16", "日本"),
        ("\ufeffnaïve".encode(), "text/plain; charset=latin-1", "naïve"),
        ('<meta charset="windows-1251">Чай'.encode("windows-1251"), "text/html", "Чай"),
        (b"na\xefve", "text/plain; charset=utf-8", "na\ufffdve"),
        (b"plain", "text/plain; charset=no-such-set", "plain"),
        (b"plain", "text/plain; charset=zlib", "plain"),
        (b"plain", "text/plain; charset=undefined", "plain"),
        (b"\\x41", "text/plain; charset=unicode_escape", "\\x41"),
        (b"plain", "text/plain; charset=../../etc/passwd", "plain"),
        (b"a\x00b", "text/plain", "a\ufffdb"),
        ("unknown type, naïve".encode(), "application/octet-stream", "unknown type, naïve"),
        (b"feed", "application/atom+xml", "feed"),
    ],
)
async def test_text_is_decoded_by_its_character_set(body: bytes, content_type: str, text: str) -> None:
    assert (await fetched(page(body, content_type)))["text"] == text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\x89PNG" * 100, "image/png"),
        (b"x" * 400, "application/zip"),
        (b"\x00" * 400, "application/octet-stream"),
        (b"\xff" * 400, "application/octet-stream"),
    ],
)
async def test_binary_content_is_named_with_its_size_and_not_shown(body: bytes, content_type: str) -> None:
    report = await fetched(page(body, content_type))
    assert (report["text"], report["note"]) == ("", "binary content of 400 bytes, not shown")


async def test_reading_stops_at_max_bytes() -> None:
    report = await fetched(page("x" * 10_000, "text/plain"), max_bytes=100)
    assert report["text"] == "x" * 100
    assert report["note"] == "cut: the body is longer than the 100 bytes that were read"


@pytest.mark.parametrize("character", ["x", "é", '"', "\n", "\x01", "日"])
async def test_a_long_text_is_cut_so_that_the_result_stays_valid_json(character: str) -> None:
    report = await fetched(page(character * 150_000, "text/plain; charset=utf-8"))
    assert report["note"].startswith("cut: ")
    assert 10_000 < len(report["text"]) < 66_000


async def test_head_reports_the_length_and_no_text() -> None:
    report = await fetched(page("x" * 1_234, "text/plain"), method="HEAD")
    assert report.items() >= {"status": 200, "content_type": "text/plain", "content_length": 1_234}.items()
    assert "text" not in report


async def test_headers_are_sent() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.headers["Accept-Language"])

    assert (await fetched(handler, headers={"Accept-Language": "de"}))["text"] == "de"


# wrong calls and failures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://169.254.169.254/latest/meta-data/"}, "private or special address"),
        ({"url": "http://localhost:1/"}, "private or special address"),
        ({"url": "file:///etc/passwd"}, "only http"),
        ({"url": ""}, "- url:"),
        ({"url": 5}, "- url:"),
        ({"method": "POST"}, "- method:"),
        ({"max_bytes": 0}, "- max_bytes:"),
        ({"max_bytes": 10**9}, "- max_bytes:"),
        ({"headers": {"Host": "x"}}, "- headers: Value error, the header Host cannot be set"),
        ({"headers": {"X": "a\r\nB: c"}}, "- headers:"),
        ({"body": "x"}, "- body:"),
    ],
)
async def test_a_wrong_call_is_explained_to_the_model(arguments: dict[str, Any], words: str) -> None:
    async with fetching(page("x")) as (_, fetch):
        outcome = await fetch(**arguments)
    assert outcome.status == "error"
    assert words in outcome.result


async def test_a_connection_that_breaks_once_is_tried_again() -> None:
    seen = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        if seen == 1:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(text="second")

    assert (await fetched(handler))["text"] == "second"


async def test_the_event_loop_runs_on_while_a_large_page_is_reduced() -> None:
    longest, last = 0.0, time.perf_counter()
    task = asyncio.create_task(fetched(page("<p>tea</p>" * 50_000)))
    while not task.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await task)["text"].startswith("tea")
    assert longest < 0.1


# HTML


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<p>a</p><p>b</p>", "a\n\nb"),
        ("<h1>a</h1>b", "# a\n\nb"),
        ("<h2> <a href=x>a</a></h2><h3></h3>b", "## [a](https://example.com/dir/x)\n\nb"),
        ("  a \n\n  <b> b</b>\tc ", "a b c"),
        ("<pre>a\n  b\n\tc  \n \n\n\nd</pre>  e", "a\n  b\n    c\n\nd\ne"),
        ("<p>a\x00b&#0;c", "a\ufffdb\ufffdc"),
        ("<ul><li>a<li>b</ul>", "- a\n- b"),
        ("<ol><li>a<ul><li>b</ul><li>c</ol><ol><li>d</ol>", "1. a\n\n  - b\n\n2. c\n\n1. d"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "| a | b\n| c"),
        ("a<script>if (1 < 2) alert('</p>')</script>b", "ab"),
        ("a<style>p > b {}</style >b", "ab"),
        ("a<SCRIPT>x</ScRiPt>b", "ab"),
        ("<head><title>T</title><meta name=x content='>'><p>body", "# T\n\nbody"),
        ("<html><head><title>T</title></head><body>body", "# T\n\nbody"),
        ("<svg><title>icon</title><text>x</text></svg>body", "body"),
        ("<svg/>body", "body"),
        ("<noscript>shown</noscript>", "shown"),
        ("a<!-- <p>hidden</p> -->b", "ab"),
        ("<!DOCTYPE html><?xml version='1'?>a", "a"),
        ("a < b && c > d", "a < b && c > d"),
        ("&lt;b&gt; &eacute;&#233;&#xe9; &nosuch; &", "<b> ééé &nosuch; &"),
        ("&#" + "9" * 5_000 + ";", "&#" + "9" * 5_000 + ";"),
        ("<a href='/tea?a=1&amp;b=2'>Tea</a>", "[Tea](https://example.com/tea?a=1&b=2)"),
        ('<a class=x href="//other.example/">x</a>', "[x](https://other.example/)"),
        ("<a href=tea>a <b>b</b></a>c", "[a b](https://example.com/dir/tea)c"),
        ("<a href=#top>top</a> <a href=javascript:x()>js</a> <a>none</a>", "top js none"),
        ("<a href=x></a>y", "y"),
        ("<a href=x>open", "[open](https://example.com/dir/x)"),
        ('<p title="a > b">text', "text"),
        ("text <a href='open", "text"),
        ("text <!-- open", "text"),
        ("text <script>open", "text"),
        ("</ >a</b", "a"),
        ("", ""),
    ],
)
def test_html_is_reduced_to_readable_text(source: str, text: str) -> None:
    assert readable(source, "https://example.com/dir/page") == text


@pytest.mark.parametrize(
    "pattern",
    [
        "<a ", "<", "<!--", "<![x", "<!x ", "<?", "</", "</a ", "<a b='", "<a b=\"x' ", "&", "&#", "&#1", "<svg>",
        "<svg></math>", "<script>", "</script", "<script></scrip", "<title>", "<a href=x>", "<a href='x'>y", "<pre>",
        "</pre>", "<p>", "<li>", "<a\n", "=\"", "<a =", "<!-- --", "<a/", "  ", "<template></template>",
        "<head><title>x</title>", "<a href", "<a href= ",
    ],
)  # fmt: skip
def test_no_page_takes_more_than_linear_time(pattern: str) -> None:
    source = pattern * (1_048_576 // len(pattern))
    began = time.process_time()
    readable(source, "https://example.com/")
    assert time.process_time() - began < 4
