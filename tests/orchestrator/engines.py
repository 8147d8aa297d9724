"""Servers on loopback that answer as search engines do. The bodies have the shapes that the engines document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from aiohttp import web

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def engine(handler: Handler) -> AsyncIterator[str]:
    """The address of a server for the time of the block."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


SEARXNG: Final[dict[str, Any]] = {
    "query": "tea",
    "number_of_results": 0,
    "results": [
        {
            "url": "https://tea.example/green",
            "title": "Green tea",
            "content": "Tea that is   not oxidised.",
            "engine": "duckduckgo",
            "parsed_url": ["https", "tea.example", "/green", "", "", ""],
            "template": "default.html",
            "engines": ["duckduckgo", "brave"],
            "positions": [1, 2],
            "score": 3.0,
            "category": "general",
            "publishedDate": None,
        },
        {"url": "https://tea.example/black", "title": "Black tea", "content": "", "engine": "brave"},
    ],
    "answers": [],
    "corrections": [],
    "infoboxes": [],
    "suggestions": ["tea time"],
    "unresponsive_engines": [["google", "timeout"]],
}

BRAVE: Final[dict[str, Any]] = {
    "type": "search",
    "query": {"original": "tea", "more_results_available": True},
    "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0, "all": False}], "top": [], "side": []},
    "web": {
        "type": "search",
        "results": [
            {
                "title": "Green tea",
                "url": "https://tea.example/green",
                "is_source_local": False,
                "is_source_both": False,
                "description": "<strong>Tea</strong> that isn&#x27;t oxidised.",
                "page_age": "2026-01-02T03:04:05",
                "profile": {"name": "Tea", "url": "https://tea.example/", "long_name": "tea.example", "img": ""},
                "language": "en",
                "family_friendly": True,
                "type": "search_result",
                "subtype": "generic",
                "meta_url": {"scheme": "https", "netloc": "tea.example", "hostname": "tea.example"},
            },
            {"title": "Black tea", "url": "https://tea.example/black", "description": "", "type": "search_result"},
        ],
        "family_friendly": True,
    },
}

TAVILY: Final[dict[str, Any]] = {
    "query": "tea",
    "follow_up_questions": None,
    "answer": None,
    "images": [],
    "results": [
        {
            "url": "https://tea.example/green",
            "title": "Green tea",
            "content": "Tea that is not oxidised.",
            "score": 0.91,
            "raw_content": None,
        },
        {
            "url": "https://tea.example/black",
            "title": "Black tea",
            "content": "",
            "score": 0.5,
            "raw_content": None,
        },
    ],
    "response_time": 0.87,
    "request_id": "5b1c7b5e-4f5a-4f4e-9d0e-000000000000",
}

EXA: Final[dict[str, Any]] = {
    "requestId": "b5947044c4b78efa9552a7c89b306d95",
    "resolvedSearchType": "neural",
    "results": [
        {
            "id": "https://tea.example/green",
            "title": "Green tea",
            "url": "https://tea.example/green",
            "publishedDate": "2026-01-02T03:04:05.000Z",
            "author": None,
            "highlights": ["Tea that is not oxidised.", "It is green."],
            "highlightScores": [0.46, 0.4],
        },
        {"id": "https://tea.example/black", "title": None, "url": "https://tea.example/black", "text": "Oxidised."},
    ],
    "searchTime": 641.2,
    "costDollars": {"total": 0.005},
}
