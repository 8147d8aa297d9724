"""Reranking by an endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.rerankers import RerankerUnavailable, choose_reranker
from memory.rerankers.endpoint import EndpointReranker


class RerankEndpoint:
    """Serves `POST /v1/rerank`, with `answer`; `requests` holds the bodies and keys."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, str | None]] = []
        self.status = 200
        self.answer: Any = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/rerank", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        self.requests.append((await request.json(), request.headers.get("Authorization")))
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def endpoint() -> AsyncIterator[RerankEndpoint]:
    running = RerankEndpoint()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def reranker(endpoint: RerankEndpoint) -> AsyncIterator[EndpointReranker]:
    made = EndpointReranker(base_url=endpoint.url, api_key=SecretStr("k"), model="m")
    yield made
    await made.aclose()


async def test_scores_come_in_the_order_of_the_texts(endpoint: RerankEndpoint, reranker: EndpointReranker) -> None:
    assert await reranker.rerank("q", ["a", "b" * 9000]) == [0.1, 0.9]
    [(body, key)] = endpoint.requests
    assert (body["model"], body["query"], body["top_n"], key) == ("m", "q", 2, "Bearer k")
    assert [len(text) for text in body["documents"]] == [1, 4000]
    assert await reranker.rerank("q", []) == []


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"results": [{"index": 0, "relevance_score": 0.1}]},
        {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 5, "relevance_score": 0.1}]},
        {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": "NaN"}]},
        {"results": None},
    ],
)
async def test_an_answer_that_is_none_is_refused(
    endpoint: RerankEndpoint, reranker: EndpointReranker, answer: Any
) -> None:
    endpoint.answer = answer
    with pytest.raises(RerankerUnavailable):
        await reranker.rerank("q", ["a", "b"])


async def test_a_refusal_names_no_key(endpoint: RerankEndpoint, reranker: EndpointReranker) -> None:
    endpoint.status = 401
    with pytest.raises(RerankerUnavailable) as refused:
        await reranker.rerank("q", ["a"])
    assert "401" in refused.value.message


async def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    reranker = EndpointReranker(base_url="http://127.0.0.1:9", api_key=SecretStr(""), model="m")
    with pytest.raises(RerankerUnavailable):
        await reranker.rerank("q", ["a"])
    await reranker.aclose()


async def test_without_settings_there_is_none_and_half_of_them_is_an_error(settings: Settings) -> None:
    assert choose_reranker(settings) is None
    for update in ({"rerank_model": "m"}, {"rerank_base_url": "http://127.0.0.1:9"}):
        with pytest.raises(BadSettings):
            choose_reranker(settings.model_copy(update=update))
    made = choose_reranker(settings.model_copy(update={"rerank_model": "m", "rerank_base_url": "http://127.0.0.1:9"}))
    assert isinstance(made, EndpointReranker)
    await made.aclose()
