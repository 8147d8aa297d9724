"""The embedder for OpenAI-compatible endpoints, over real HTTP."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import SecretStr

from memory.embedders.openai import OpenAIEmbedder
from memory.errors import EmbedderUnavailable
from tests.memory.endpoint import EmbeddingEndpoint, answer_for, concept_vector


@pytest.fixture
async def embedder(endpoint: EmbeddingEndpoint) -> AsyncIterator[OpenAIEmbedder]:
    embedder = endpoint.embedder()
    yield embedder
    await embedder.aclose()


@pytest.fixture
async def measured(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> OpenAIEmbedder:
    """The embedder after its first call, whose request is forgotten."""
    await embedder.embed(["first"])
    endpoint.requests.clear()
    return embedder


async def test_vectors_come_in_the_order_of_the_texts_and_with_unit_length(measured: OpenAIEmbedder) -> None:
    texts = ["a red car", "the doctor is in", ""]
    vectors = await measured.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        expected = concept_vector(text)
        length = math.hypot(*expected)
        assert vector == pytest.approx([value / length for value in expected], abs=1e-5)


async def test_the_model_and_the_key_are_sent(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder) -> None:
    await measured.embed(["a red car"])
    assert endpoint.requests == [{"model": "concepts", "input": ["a red car"], "encoding_format": "float"}]
    assert set(endpoint.keys) == {"Bearer sk-of-the-tests"}


async def test_without_a_key_no_authorization_is_sent(endpoint: EmbeddingEndpoint) -> None:
    embedder = endpoint.embedder(key="")
    await embedder.embed(["a red car"])
    await embedder.aclose()
    assert endpoint.keys == [None]


async def test_the_first_answer_tells_dimensions_and_how_near_unrelated_texts_are(embedder: OpenAIEmbedder) -> None:
    assert embedder.dimensions == 0
    [car, automobile, weather] = await embedder.embed(["car", "automobile", "weather"])
    assert embedder.dimensions == 512
    assert 0.5 <= embedder.nearness.floor < 0.7
    assert sum(a * b for a, b in zip(car, automobile, strict=True)) > embedder.nearness.floor
    assert sum(a * b for a, b in zip(car, weather, strict=True)) <= embedder.nearness.floor


async def test_many_texts_go_in_batches(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder) -> None:
    texts = [f"text {number}" for number in range(150)]
    vectors = await measured.embed(texts)
    assert [len(request["input"]) for request in endpoint.requests] == [64, 64, 22]
    assert vectors[149] == (await measured.embed(["text 149"]))[0]


async def test_no_texts_need_no_request(endpoint: EmbeddingEndpoint, embedder: OpenAIEmbedder) -> None:
    assert await embedder.embed([]) == []
    assert endpoint.requests == []


async def test_a_text_longer_than_endpoints_take_is_cut(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder) -> None:
    await measured.embed(["猫" * 8000])
    assert len(endpoint.requests[0]["input"][0]) == 6000


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_that_may_pass_is_tried_again(
    endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder, status: int
) -> None:
    endpoint.answers = [web.Response(status=status), web.Response(status=status)]
    assert len(await measured.embed(["a red car"])) == 1
    assert len(endpoint.requests) == 3


async def test_a_failure_that_stays_is_given_up(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder) -> None:
    endpoint.answers = [web.Response(status=503) for _ in range(9)]
    with pytest.raises(EmbedderUnavailable, match=r"it answered 503 \(3 tries\)"):
        await measured.embed(["a red car"])
    assert len(endpoint.requests) == 3


async def test_a_refused_key_is_not_tried_again_and_not_quoted(
    endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder
) -> None:
    told = {"error": {"message": "Incorrect API key provided: sk-of-the-tests"}}
    endpoint.answers = [web.json_response(told, status=401)]
    with pytest.raises(EmbedderUnavailable, match="it refuses the key") as failed:
        await measured.embed(["a red car"])
    assert "sk-of" not in failed.value.message
    assert len(endpoint.requests) == 1


async def test_a_refused_request_tells_the_endpoints_reason(
    endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder
) -> None:
    endpoint.answers = [web.json_response({"error": {"message": "no model 'concepts'"}}, status=404)]
    with pytest.raises(EmbedderUnavailable, match="404: no model 'concepts'"):
        await measured.embed(["a red car"])


def _changed(**changes: Any) -> bytes:
    return orjson.dumps({**answer_for(["a red car"]), **changes})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"data": null}',
        _changed(data=[]),
        _changed(data=answer_for(["one", "two"])["data"]),
        _changed(data=[{"index": 0}]),
        _changed(data=[{"index": 0, "embedding": []}]),
        _changed(data=[{"index": 0, "embedding": "AAAA"}]),
        _changed(data=[{"index": 0, "embedding": [1e308, 1e308]}]),
        _changed(data=[{"index": 7, "embedding": [1.0]}]),
        _changed(data=[{"index": 0, "embedding": [1.0, None]}]),
    ],
)
async def test_garbage_is_no_vector(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder, body: bytes) -> None:
    endpoint.answers = [web.Response(body=body, content_type="application/json")]
    with pytest.raises(EmbedderUnavailable, match="not what OpenAI's API describes"):
        await measured.embed(["a red car"])


async def test_a_redirect_is_not_followed(endpoint: EmbeddingEndpoint, measured: OpenAIEmbedder) -> None:
    endpoint.answers = [web.Response(status=307, headers={"Location": f"{endpoint.url}/embeddings"})]
    with pytest.raises(EmbedderUnavailable, match="it answered 307"):
        await measured.embed(["a red car"])
    assert len(endpoint.requests) == 1


async def test_silence_is_given_up() -> None:
    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        embedder = OpenAIEmbedder(
            base_url=f"http://127.0.0.1:{port}",
            api_key=SecretStr(""),
            model="m",
            timeout=0.05,
            retries=1,
            backoff=0.001,
        )
        with pytest.raises(EmbedderUnavailable, match=r"no answer within 0.05 s \(2 tries\)"):
            await embedder.embed(["a red car"])
        await embedder.aclose()


async def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    embedder = OpenAIEmbedder(
        base_url="http://127.0.0.1:9/v1", api_key=SecretStr(""), model="m", retries=0, backoff=0.001
    )
    with pytest.raises(EmbedderUnavailable, match=r"http://127\.0\.0\.1:9/v1/embeddings gave no vectors"):
        await embedder.embed(["a red car"])
    await embedder.aclose()
