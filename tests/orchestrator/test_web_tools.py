"""The tools `web_search` and `read_page`, called as agents call them."""

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
from orchestrator.search.searxng import SearXNG
from orchestrator.tools.read_page import PART, ReadPage
from orchestrator.tools.readable import article
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from orchestrator.tools.web_search import WebSearch
from tests.orchestrator.engines import SEARXNG, Handler, engine

CONTEXT = ToolContext("org_1", None, None, "ses_1", "run_1", "call_1", "run_1:2:call_1")

Search = Callable[..., Awaitable[ToolOutcome]]


@asynccontextmanager
async def searching(handler: Handler) -> AsyncIterator[tuple[Search, list[float]]]:
    """A function that calls `web_search`, and the seconds that it and its toolbox have waited."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with engine(handler) as url:
        toolbox = Toolbox([WebSearch(SearXNG(url), sleep=sleep)], sleep=sleep)

        async def search(**arguments: Any) -> ToolOutcome:
            return await toolbox.call("web_search", {"query": "tea"} | arguments, CONTEXT, allowed=["web_search"])

        try:
            yield search, waited
        finally:
            await toolbox.aclose()


def answers(*given: tuple[int, dict[str, str]]) -> tuple[Handler, list[web.Request]]:
    """Answers with these in turn, then with results; and the requests so far."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        if len(seen) <= len(given):
            status, headers = given[len(seen) - 1]
            return web.Response(status=status, headers=headers)
        return web.json_response(SEARXNG)

    return handler, seen


# web_search


async def test_a_search_gives_pages_as_json() -> None:
    handler, seen = answers()
    async with searching(handler) as (search, _):
        outcome = await search(query="  green \n tea ", limit=1)
    assert (outcome.status, json.loads(outcome.result)) == (
        "ok",
        {
            "query": "green tea",
            "results": [
                {
                    "title": "Green tea",
                    "url": "https://tea.example/green",
                    "snippet": "Tea that is not oxidised.",
                }
            ],
        },
    )
    assert seen[0].query["q"] == "green tea"


async def test_a_search_without_results_says_what_to_try() -> None:
    async def nothing(request: web.Request) -> web.StreamResponse:
        return web.json_response({"results": []})

    async with searching(nothing) as (search, _):
        outcome = await search()
    assert json.loads(outcome.result)["note"] == "nothing was found: try fewer or other words"


@pytest.mark.parametrize(
    "arguments", [{"query": ""}, {"query": "  "}, {"query": "q" * 401}, {"limit": 0}, {"limit": 21}, {"page": 2}]
)
async def test_a_wrong_search_is_not_made(arguments: dict[str, Any]) -> None:
    handler, seen = answers()
    async with searching(handler) as (search, _):
        assert (await search(**arguments)).status == "error"
    assert seen == []


async def test_a_short_rate_limit_is_waited_out() -> None:
    handler, seen = answers((429, {"Retry-After": "2"}))
    async with searching(handler) as (search, waited):
        outcome = await search()
    assert outcome.status == "ok"
    assert len(seen) == 2
    assert 1.5 < waited[-1] <= 2  # the first wait is the toolbox's own


async def test_a_long_rate_limit_is_told_and_no_call_asks_meanwhile() -> None:
    handler, seen = answers((429, {"Retry-After": "600"}))
    async with searching(handler) as (search, waited):
        first = await search()
        second = await search(query="coffee")
    assert first.status == second.status == "error"
    assert "for about 600 s" in first.result
    assert "no more requests" in second.result
    assert len(seen) == 1
    assert waited == []


async def test_an_engine_that_fails_is_asked_again() -> None:
    handler, seen = answers((502, {}), (500, {}))
    async with searching(handler) as (search, _):
        assert (await search()).status == "ok"
    assert len(seen) == 3


async def test_an_engine_that_refuses_is_told_as_the_operators_matter() -> None:
    handler, seen = answers(*[(403, {})] * 5)
    async with searching(handler) as (search, _):
        outcome = await search()
    assert outcome.status == "error"
    assert "only the operator can repair it" in outcome.result
    assert len(seen) == 1


# read_page

ARTICLE = """<!doctype html><html><head><title>Tea &amp; time</title><style>p{}</style></head><body>
<header><a href="/">Home</a></header><nav><ul><li><a href=/a>Menu A</a><li>Menu B</ul></nav>
<main><article><header><h1>How to brew</h1></header><p>Boil <b>fresh</b> water.</p>
<h2>Steps</h2><ol><li>Warm the pot<li>Wait <i>three</i> minutes</ol>
<table><tr><th>Tea<th>Minutes<tr><td>Green<td>2</table>
<pre>for cup in cups:
    pour(cup)</pre>
<aside>Buy our pots!</aside><p>See <a href="more.html">more</a>.</p>
<script>track()</script></article></main>
<footer>© Tea</footer></body></html>"""


@asynccontextmanager
async def reading(handler: Handler) -> AsyncIterator[tuple[str, Search]]:
    async with engine(handler) as url:
        egress = EgressClient(allow=[url.removeprefix("http://")], timeout=5)

        async def sleep(seconds: float) -> None:
            return

        toolbox = Toolbox([ReadPage(egress)], sleep=sleep)

        async def read(**arguments: Any) -> ToolOutcome:
            return await toolbox.call("read_page", {"url": f"{url}/"} | arguments, CONTEXT, allowed=["read_page"])

        yield url, read
        await egress.aclose()


def page(body: str | bytes, content_type: str = "text/html; charset=utf-8", status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=data, headers={"Content-Type": content_type})

    return handler


async def test_a_page_comes_without_what_is_around_it() -> None:
    async with reading(page(ARTICLE)) as (url, read):
        outcome = await read()
    found = json.loads(outcome.result)
    assert (found["url"], found["title"]) == (f"{url}/", "Tea & time")
    assert found["text"] == (
        "# How to brew\n\nBoil fresh water.\n\n## Steps\n\n1. Warm the pot\n2. Wait three minutes\n\n"
        "| Tea | Minutes\n| Green | 2\n\nfor cup in cups:\n    pour(cup)\n\n"
        f"See [more]({url}/more.html)."
    )
    assert "next_offset" not in found


async def test_a_long_page_is_read_in_parts_that_fit_together() -> None:
    lines = "".join(f"<p>Line {number} of a long page, which says little.</p>" for number in range(2_000))
    async with reading(page(lines)) as (_, read):
        parts: list[str] = []
        offset: int | None = 0
        while offset is not None:
            outcome = await read(offset=offset)
            found = json.loads(outcome.result)
            assert len(found["text"]) <= PART
            parts.append(found["text"])
            offset = found.get("next_offset")
        beyond = await read(offset=10**6)
    assert len(parts) > 3
    assert all(part.startswith("Line") for part in parts)
    assert "".join(parts) == article(lines).text
    assert "use a smaller offset" in beyond.result


@pytest.mark.parametrize("character", ["x", "日", '"', "\x01"])
async def test_a_part_is_valid_json_whatever_it_holds(character: str) -> None:
    async with reading(page(character * 100_000, "text/plain; charset=utf-8")) as (_, read):
        outcome = await read()
    assert len(json.loads(outcome.result)["text"]) == PART


@pytest.mark.parametrize(
    ("body", "content_type"), [("a: 1", "application/yaml"), ('{"a": 1}', "application/json"), ("<b>", "text/plain")]
)
async def test_a_text_that_is_no_page_is_given_as_it_is(body: str, content_type: str) -> None:
    async with reading(page(body, content_type)) as (_, read):
        assert json.loads((await read()).result)["text"] == body


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (page(b"%PDF-1.7", "application/pdf"), "no page of text but application/pdf"),
        (page(b"\x00" * 1_000, "application/octet-stream"), "can't be read"),
        (page("<script>render()</script>"), "may need JavaScript"),
        (page("gone", status=404), "status 404"),
        (page("busy", status=503), "(tried 2 times)"),
    ],
)
async def test_what_is_no_page_is_said(handler: Handler, words: str) -> None:
    async with reading(handler) as (_, read):
        outcome = await read()
    assert outcome.status == "error"
    assert words in outcome.result


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data/", "http://localhost:1/", "file:///etc/passwd"]
)
async def test_private_places_are_not_read(url: str) -> None:
    async with reading(page("x")) as (_, read):
        outcome = await read(url=url)
    assert (outcome.status, outcome.result[:9]) == ("error", "Not sent:")


async def test_the_event_loop_runs_on_while_a_large_page_is_read() -> None:
    longest, last = 0.0, time.perf_counter()
    async with reading(page("<p>tea</p>" * 50_000)) as (_, read):
        task = asyncio.ensure_future(read())
        while not task.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert (await task).status == "ok"
    assert longest < 0.1


# articles


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<main><p>m</main><article>a</article>", "m"),
        ("<nav>n</nav><p>paragraph<footer>f</footer>", "paragraph"),
        ("<form><p>all of the page</form>", "all of the page"),
        ("<header><h1>h</h1></header>p", "# h\n\np"),
        ("<article>one</article><article>two</article><article>six</article>", "one\n\ntwo\n\nsix"),
        ("<article>" + "long " * 60 + "</article><article>comment</article>", ("long " * 60).strip()),
        ("<main>a" + "<p>b" * 3, "a\n\nb\n\nb\n\nb"),
        ("<main><article><main>x</main></article></main>", "x"),
        ("</main></article>x", "x"),
        ("<a href=/x><article>card</article></a>", "card"),
        ("<noscript>enable it</noscript><p>paragraph", "paragraph"),
        ("<main></main><p>beside", "beside"),
    ],
)
def test_the_matter_of_a_page_is_found(source: str, text: str) -> None:
    assert article(source, "https://example.com/").text == text


def test_a_page_that_leaves_nothing_is_given_whole() -> None:
    assert article("<nav>" + "never closed " * 50).text == ("never closed " * 50).strip()
    assert article("<main>x</main>" + "<p>much more</p>" * 50).text.count("much more") == 50


@pytest.mark.parametrize(
    "pattern",
    ["<main>", "<article>", "<article>x</article>", "<main></main>", "</main>", "<ul><li>", "<ol>", "<li>", "<nav>",
     "<nav></nav>", "<h1>", "<pre> ", "\t", "<pre>\t", "<a href=x><main>", "<aside><nav></aside>", "# ", "\x00"],
)  # fmt: skip
def test_no_page_takes_more_than_linear_time(pattern: str) -> None:
    source = pattern * (1_048_576 // len(pattern))
    began = time.process_time()
    article(source, "https://example.com/")
    assert time.process_time() - began < 8
