"""A memory on the shared database, and an embedding endpoint that answers what a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kernel.postgres import Pool
from memory.embedders.lexical import LexicalEmbedder
from memory.store import PostgresMemory
from tests.memory.endpoint import EmbeddingEndpoint


@pytest.fixture
def memory(database: Pool) -> PostgresMemory:
    return PostgresMemory(database, LexicalEmbedder(), patience=30.0)


@pytest.fixture
async def endpoint() -> AsyncIterator[EmbeddingEndpoint]:
    async with EmbeddingEndpoint() as running:
        yield running
