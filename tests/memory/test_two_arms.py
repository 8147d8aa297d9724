"""Recall with an embedding endpoint: what vectors add, and what happens without them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from kernel.postgres import Pool
from memory.embedders.openai import OpenAIEmbedder
from memory.errors import MemoryUnavailable
from memory.records import Scope
from memory.store import PostgresMemory
from tests.memory.endpoint import EmbeddingEndpoint


@pytest.fixture
async def embedder(endpoint: EmbeddingEndpoint) -> AsyncIterator[OpenAIEmbedder]:
    embedder = endpoint.embedder(retries=0)
    yield embedder
    await embedder.aclose()


@pytest.fixture
def conceptual(database: Pool, embedder: OpenAIEmbedder) -> PostgresMemory:
    return PostgresMemory(database, embedder, patience=30.0, embedder_patience=30.0)


@pytest.fixture
def scope(org: str) -> Scope:
    return Scope(org, user_id="alice")


async def test_what_is_said_in_other_words_is_recalled(conceptual: PostgresMemory, scope: Scope) -> None:
    item = await conceptual.remember(scope, "She bought a car yesterday.")
    await conceptual.remember(scope, "The harbour closes at nine.")
    assert [found.id for found in await conceptual.recall(scope, "Which automobile?")] == [item.id]
    assert [found.id for found in await conceptual.recall(scope, "哪一辆轿车？")] == [item.id]


async def test_what_is_unrelated_is_not_recalled(conceptual: PostgresMemory, scope: Scope) -> None:
    await conceptual.remember(scope, "She bought a car yesterday.")
    await conceptual.remember(scope, "The harbour closes at nine.")
    for query in ("Explain photosynthesis", "Tell me about volcanoes", "今天天气怎么样？"):
        assert await conceptual.recall(scope, query) == []


async def test_agreement_of_both_arms_ranks_highest(conceptual: PostgresMemory, scope: Scope) -> None:
    meaning = await conceptual.remember(scope, "An automobile needs care.")
    both = await conceptual.remember(scope, "The car needs care.")
    items = await conceptual.recall(scope, "car")
    assert [item.id for item in items] == [both.id, meaning.id]


async def test_an_org_without_memories_costs_no_embedding(
    conceptual: PostgresMemory, scope: Scope, endpoint: EmbeddingEndpoint
) -> None:
    assert await conceptual.recall(scope, "Which automobile?") == []
    assert endpoint.requests == []


async def test_recall_goes_on_by_terms_where_the_endpoint_is_down(
    conceptual: PostgresMemory, scope: Scope, endpoint: EmbeddingEndpoint
) -> None:
    item = await conceptual.remember(scope, "She bought a car yesterday.")
    endpoint.answers = [web.Response(status=500)]
    [found] = await conceptual.recall(scope, "car bought")
    assert found.id == item.id
    assert found.score == pytest.approx(1.0)
    endpoint.answers = [web.Response(status=500)]
    assert await conceptual.recall(scope, "automobile") == []


async def test_recall_does_not_wait_for_a_slow_endpoint(
    conceptual: PostgresMemory, scope: Scope, database: Pool, embedder: OpenAIEmbedder
) -> None:
    item = await conceptual.remember(scope, "She bought a car yesterday.")
    hasty = PostgresMemory(database, embedder, patience=30.0, embedder_patience=0.0)
    assert [found.id for found in await hasty.recall(scope, "car")] == [item.id]


async def test_nothing_is_remembered_while_the_endpoint_is_down(
    conceptual: PostgresMemory, scope: Scope, endpoint: EmbeddingEndpoint, database: Pool
) -> None:
    endpoint.answers = [web.Response(status=500)]
    with pytest.raises(MemoryUnavailable, match="nothing was remembered"):
        await conceptual.remember(scope, "She bought a car yesterday.")
    assert not await database.fetchval("SELECT EXISTS (SELECT FROM memories WHERE org_id = $1)", scope.org_id)


async def test_vectors_of_another_model_are_not_compared_but_terms_still_are(
    memory: PostgresMemory, conceptual: PostgresMemory, scope: Scope
) -> None:
    old = await memory.remember(scope, "She bought a car yesterday.")
    assert await conceptual.recall(scope, "automobile") == []
    assert [item.id for item in await conceptual.recall(scope, "car")] == [old.id]
    new = await conceptual.remember(scope, "She bought a car yesterday.")
    assert new.id == old.id
    assert [item.id for item in await conceptual.recall(scope, "automobile")] == [old.id]
