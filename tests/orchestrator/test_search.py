"""Search engines: each adapter against a server that speaks the engine's own language, well and badly."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from time import time
from typing import Any, ClassVar

import ddgs.engines
import pytest
from aiohttp import web
from ddgs.base import BaseSearchEngine
from ddgs.results import TextResult
from pydantic import SecretStr

from kernel.settings import Settings
from orchestrator.search.brave import Brave
from orchestrator.search.choose import choose_engine
from orchestrator.search.ddgs import Ddgs
from orchestrator.search.exa import Exa
from orchestrator.search.port import SearchEngine, SearchFailed, SearchLimited, SearchRefused, SearchResult
from orchestrator.search.results import tidy
from orchestrator.search.searxng import SearXNG
from orchestrator.search.tavily import Tavily
from tests.orchestrator.engines import BRAVE, EXA, SEARXNG, TAVILY, Handler, engine

KEY = SecretStr("key-of-the-tests")

MAKERS: dict[str, Callable[[str], SearchEngine]] = {
    "searxng": SearXNG,
    "brave": lambda url: Brave(KEY, url),
    "tavily": lambda url: Tavily(KEY, url),
    "exa": lambda url: Exa(KEY, url),
}
ANSWERS = {"searxng": SEARXNG, "brave": BRAVE, "tavily": TAVILY, "exa": EXA}
EVERY = pytest.mark.parametrize("name", MAKERS)


def answering(
    status: int = 200,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    seen: list[web.Request] | None = None,
) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if seen is not None:
            await request.read()
            seen.append(request)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers={"Content-Type": "application/json"} | (headers or {}))

    return handler


async def searched(name: str, handler: Handler, query: str = "tea", limit: int = 10) -> list[SearchResult]:
    async with engine(handler) as url:
        adapter = MAKERS[name](url)
        try:
            return await adapter.search(query, limit)
        finally:
            await adapter.aclose()


@EVERY
async def test_results_come_with_title_address_and_snippet(name: str) -> None:
    first, second = await searched(name, answering(body=ANSWERS[name]))
    assert (first.title, first.url) == ("Green tea", "https://tea.example/green")
    assert first.snippet in {
        "Tea that is not oxidised.",
        "Tea that isn't oxidised.",
        "Tea that is not oxidised. … It is green.",
    }
    assert second.url == "https://tea.example/black"


async def test_each_engine_is_asked_in_its_own_language() -> None:
    seen: list[web.Request] = []
    for name, answer in ANSWERS.items():
        await searched(name, answering(body=answer, seen=seen), "tea & cake", 5)
    searxng, brave, tavily, exa = seen
    assert (searxng.method, searxng.path, dict(searxng.query)) == (
        "GET",
        "/search",
        {"q": "tea & cake", "format": "json"},
    )
    assert (brave.method, brave.path) == ("GET", "/web/search")
    assert dict(brave.query).items() >= {"q": "tea & cake", "count": "5"}.items()
    assert brave.headers["X-Subscription-Token"] == "key-of-the-tests"
    assert (tavily.method, tavily.path) == ("POST", "/search")
    assert (await tavily.json()).items() >= {"query": "tea & cake", "max_results": 5}.items()
    assert tavily.headers["Authorization"] == "Bearer key-of-the-tests"
    assert (exa.method, exa.path) == ("POST", "/search")
    assert (await exa.json()).items() >= {"query": "tea & cake", "numResults": 5}.items()
    assert exa.headers["x-api-key"] == "key-of-the-tests"


async def test_an_instance_may_be_below_a_path() -> None:
    seen: list[web.Request] = []
    async with engine(answering(body=SEARXNG, seen=seen)) as url:
        adapter = SearXNG(f"{url}/searx/")
        await adapter.search("tea", 1)
        await adapter.aclose()
    assert seen[0].path == "/searx/search"


@EVERY
async def test_no_more_than_the_limit_is_given(name: str) -> None:
    assert len(await searched(name, answering(body=ANSWERS[name]), limit=1)) == 1


@EVERY
async def test_nothing_found_is_no_failure(name: str) -> None:
    nothing = {"searxng": {"results": []}, "brave": {"type": "search", "query": {}}}.get(name, {"results": []})
    assert await searched(name, answering(body=nothing)) == []


# failures


@EVERY
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({}, None), ({"X-RateLimit-Reset": "1, 1419704"}, 1.0), ({"Retry-After": "x"}, None)],
)
async def test_a_rate_limit_says_how_long(name: str, headers: dict[str, str], seconds: float | None) -> None:
    with pytest.raises(SearchLimited) as caught:
        await searched(name, answering(429, {"error": "too fast"}, headers))
    assert (caught.value.retry_after, caught.value.retryable) == (seconds, True)


async def test_a_rate_limit_may_name_a_time() -> None:
    with pytest.raises(SearchLimited) as caught:
        await searched("exa", answering(429, {}, {"Retry-After": formatdate(time() + 100, usegmt=True)}))
    assert caught.value.retry_after is not None
    assert 95 < caught.value.retry_after <= 100


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("searxng", 403, b"<!doctype html><title>403 Forbidden</title>"),
        ("brave", 422, {"type": "ErrorResponse", "error": {"status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID"}}),
        ("brave", 401, {}),
        ("tavily", 401, {"detail": {"error": "Unauthorized: missing or invalid API key."}}),
        ("tavily", 432, {"detail": {"error": "This request exceeds your plan's set usage limit."}}),
        ("tavily", 433, {"detail": {"error": "This request exceeds the pay-as-you-go limit."}}),
        ("exa", 401, {"requestId": "1", "error": "Invalid API key", "tag": "INVALID_API_KEY"}),
        ("exa", 402, {"requestId": "1", "error": "out of credits", "tag": "NO_MORE_CREDITS"}),
        ("exa", 404, {}),
        ("searxng", 302, {}),
    ],
)
async def test_what_only_the_operator_can_repair_is_told_apart(name: str, status: int, body: Any) -> None:
    with pytest.raises(SearchRefused) as caught:
        await searched(name, answering(status, body, {"Location": "http://127.0.0.1:1/"}))
    assert not caught.value.retryable
    assert "key-of-the-tests" not in caught.value.message


@EVERY
@pytest.mark.parametrize(("status", "retryable"), [(400, False), (500, True), (502, True), (408, True)])
async def test_other_failures_say_whether_to_try_again(name: str, status: int, retryable: bool) -> None:
    with pytest.raises(SearchFailed) as caught:
        await searched(name, answering(status, {"error": "tea"}))
    assert type(caught.value) is SearchFailed
    assert caught.value.retryable is retryable


@EVERY
@pytest.mark.parametrize(
    "body",
    [
        b"<html>Please prove that you are human",
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"results": ["a", 1], "web": {"results": [1]}, "type": "search"}',
        b'{"results": {"a": 1}, "web": {"results": "x"}, "type": "search"}',
        b'{"error": "no such thing"}',
        b'{"results": [' + b"1," * 1_500_000 + b"1]}",
    ],
)
async def test_an_answer_that_is_no_answer_is_a_failure(name: str, body: bytes) -> None:
    with pytest.raises(SearchFailed, match="answered with") as caught:
        await searched(name, answering(body=body))
    assert not caught.value.retryable


@EVERY
async def test_an_engine_that_is_away_may_be_tried_again(name: str) -> None:
    async with engine(answering()) as url:
        pass
    adapter = MAKERS[name](url)
    with pytest.raises(SearchFailed, match="did not answer") as caught:
        await adapter.search("tea", 3)
    await adapter.aclose()
    assert caught.value.retryable
    assert "127.0.0.1" not in caught.value.message


async def test_only_the_engines_own_address_may_be_private() -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:1/")

    with pytest.raises(SearchRefused):
        await searched("searxng", elsewhere)


# results


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (("<b>a</b>  \n b", "https://a.example", "c &amp; <i class='x'>d</i>"), ("a b", "c & d")),
        (("vector<int>", "https://a.example", "a < b > c"), ("vector<int>", "a < b > c")),
        (("&lt;script&gt;", "https://a.example", "&#" + "9" * 5_000), ("<script>", "&#" + "9" * 5_000)),
        (("a\x00b\u202ec", "https://a.example", "\ud800"), ("abc", "\ufffd")),
        ((None, "https://a.example", 5), ("https://a.example", "")),
    ],
)
def test_texts_are_clean_lines(given: tuple[object, object, object], shown: tuple[str, str]) -> None:
    [result] = tidy([given], 5)
    assert (result.title, result.snippet[:5_002]) == (
        shown[0],
        shown[1][:999] + "…" if len(shown[1]) > 1_000 else shown[1],
    )


def test_long_texts_are_cut() -> None:
    [result] = tidy([("t" * 10_000, "https://a.example", "s" * 1_000_000)], 5)
    assert (len(result.title), len(result.snippet)) == (300, 1_000)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "javascript:alert(1)",
            "ftp://a.example",
            "//a.example",
            "/a",
            "https://",
            "http://[",
            "https://a b.example",
        ),
        *(
            "https://a.example/\n",
            "https://a.example/" + "a" * 3_000,
            None,
            5,
            "data:text/html,x",
            "https://a\x00.example",
        ),
    ],
)
def test_what_is_no_address_of_a_page_is_left_out(url: object) -> None:
    assert [result.url for result in tidy([("t", url, "s"), ("t", "https://b.example", "s")], 5)] == [
        "https://b.example"
    ]


def test_a_page_is_given_once() -> None:
    urls = [
        "https://a.example/x",
        "http://www.A.example/x/",
        "https://a.example/x#part",
        "https://a.example/x?y",
        "https://a.example/X",
    ]
    assert [result.url for result in tidy([("t", url, "s") for url in urls], 9)] == [urls[0], urls[3], urls[4]]


# ddgs


class Local(BaseSearchEngine[TextResult]):
    """An engine of the library, whose pages a test serves."""

    name = "local"
    category = "text"
    provider = "local"
    search_url = ""
    search_method = "GET"
    items_xpath = "//li"
    elements_xpath: ClassVar[dict[str, str]] = {"title": ".//a/text()", "href": ".//a/@href", "body": ".//p//text()"}

    def build_payload(
        self, query: str, region: str, safesearch: str, timelimit: str | None, page: int, **kwargs: str
    ) -> dict[str, Any]:
        return {"q": query}


async def with_ddgs(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> list[SearchResult]:
    async with engine(handler) as url:
        monkeypatch.setattr(Local, "search_url", f"{url}/find")
        monkeypatch.setitem(ddgs.engines.ENGINES["text"], "local", Local)
        adapter = Ddgs(backend="local", allow=[url.removeprefix("http://")])
        try:
            return await adapter.search("green tea", 5)
        finally:
            await adapter.aclose()


async def test_ddgs_finds_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        page = "<ul><li><a href='https://tea.example/green'>Green tea</a><p>Is <b>not</b> oxidised.</p></ul>"
        return web.Response(text=page, content_type="text/html")

    assert await with_ddgs(handler, monkeypatch) == [
        SearchResult("Green tea", "https://tea.example/green", "Is not oxidised.")
    ]
    assert seen[0].query["q"] == "green tea"


@pytest.mark.parametrize("status", [200, 202, 403])
async def test_ddgs_that_finds_nothing_says_so(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="<p>nothing</p>", content_type="text/html")

    assert await with_ddgs(handler, monkeypatch) == []


async def test_ddgs_that_reaches_no_engine_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with pytest.raises(SearchFailed) as caught:
        await with_ddgs(handler, monkeypatch)
    assert caught.value.retryable


async def test_ddgs_reaches_no_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[web.Request] = []
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("127.0.0.1", "localhost"):
        async with engine(answering(seen=seen)) as url:
            monkeypatch.setattr(Local, "search_url", url.replace("127.0.0.1", name))
            monkeypatch.setitem(ddgs.engines.ENGINES["text"], "local", Local)
            adapter = Ddgs(backend="local")
            with pytest.raises(SearchFailed):
                await adapter.search("green tea", 5)
            await adapter.aclose()
    assert seen == []


async def test_ddgs_follows_no_redirect_to_a_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[web.Request] = []

    async with engine(answering(seen=seen)) as inside:

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": f"{inside}/metadata"})

        with pytest.raises(SearchFailed):
            await with_ddgs(handler, monkeypatch)
    assert seen == []


async def test_ddgs_takes_no_proxy_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(answering()) as elsewhere:
        for name in ("DDGS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere)
        await test_ddgs_finds_without_a_key(monkeypatch)


# choice


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, None),
        ({"search_engine": "searxng", "search_url": "http://10.0.0.5:8080"}, "searxng"),
        ({"search_engine": "brave", "search_key": "k"}, "brave"),
        ({"search_engine": "tavily", "search_key": "k", "search_url": "https://gateway.example/tavily"}, "tavily"),
        ({"search_engine": "exa", "search_key": "k"}, "exa"),
        ({"search_engine": "ddgs"}, "ddgs"),
    ],
)
async def test_the_settings_name_the_engine(settings: Settings, given: dict[str, str], kind: str | None) -> None:
    stores = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "secret_key": settings.secret_key.get_secret_value(),
    }
    chosen = choose_engine(Settings.model_validate(stores | given))
    assert (chosen.name if chosen else None) == kind
    if chosen is not None:
        closed: Awaitable[None] = chosen.aclose()
        await closed
