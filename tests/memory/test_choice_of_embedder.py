"""Which embedder the settings name."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.embedders import choose_embedder, previous_embedders


def configured(settings: Settings, base_url: str | None, name: str) -> Settings:
    return settings.model_copy(
        update={"embedding_base_url": base_url, "embedding_api_key": SecretStr("k"), "embedding_model": name}
    )


def test_without_an_endpoint_it_is_the_offline_one(settings: Settings) -> None:
    assert choose_embedder(settings).model == "lexical-1"


async def test_an_endpoint_and_a_model_are_taken(settings: Settings) -> None:
    embedder = choose_embedder(configured(settings, "http://127.0.0.1:9/v1/", "small"))
    assert (embedder.model, embedder.local) == ("small", False)
    await embedder.aclose()


@pytest.mark.parametrize(
    ("base_url", "name", "missing"),
    [(None, "small", "LONGHAUL_EMBEDDING_BASE_URL"), ("http://127.0.0.1:9/v1", "lexical", "LONGHAUL_EMBEDDING_MODEL")],
)
def test_half_a_configuration_is_an_error_that_names_the_other_half(
    settings: Settings, base_url: str | None, name: str, missing: str
) -> None:
    with pytest.raises(BadSettings) as wrong:
        choose_embedder(configured(settings, base_url, name))
    assert missing in wrong.value.suggestions[0]


def test_the_offline_one_always_answers_for_older_vectors(settings: Settings) -> None:
    assert [*previous_embedders(settings)] == ["lexical-1"]


async def test_the_previous_model_is_asked_at_the_same_endpoint_unless_another_is_named(settings: Settings) -> None:
    present = configured(settings, "http://127.0.0.1:9/v1", "large")
    found = previous_embedders(present.model_copy(update={"embedding_previous_model": "small"}))
    assert [*found] == ["lexical-1", "small"]
    assert not found["small"].local
    alone = settings.model_copy(update={"embedding_previous_model": "small"})
    with pytest.raises(BadSettings) as wrong:
        previous_embedders(alone)
    assert "LONGHAUL_EMBEDDING_PREVIOUS_BASE_URL" in wrong.value.suggestions[0]
    for embedder in found.values():
        await embedder.aclose()
