"""A model on this machine, as the package writes them: here one of eight words."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.embedders import choose_embedder
from memory.embedders.local import LocalEmbedder
from memory.errors import EmbedderUnavailable

WORDS = ("[UNK]", "[PAD]", "car", "automobile", "weather", "sun", "猫", "dog")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which a car is an automobile."""
    vectors = np.eye(len(WORDS), dtype=np.float32)
    vectors[0] = vectors[1] = 0
    vectors[WORDS.index("automobile")] = vectors[WORDS.index("car")] * 3
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path_factory.mktemp("models") / "eight-words"
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return folder


async def test_vectors_are_of_the_model_and_of_length_one(weights: Path) -> None:
    embedder = await asyncio.to_thread(LocalEmbedder, str(weights))
    car, automobile, weather, nothing = await embedder.embed(["car", "automobile", "weather sun", "zzz"])
    assert embedder.model == "local:eight-words"
    assert len(car) == len(WORDS)
    assert car == pytest.approx(automobile)
    assert math.hypot(*weather) == pytest.approx(1)
    assert sum(a * b for a, b in zip(car, weather, strict=True)) == 0
    assert not any(nothing)
    assert await embedder.embed([]) == []
    assert 0 <= embedder.nearness.floor < 1


async def test_the_settings_name_it_by_its_folder(settings: Settings, weights: Path) -> None:
    embedder = await asyncio.to_thread(
        choose_embedder, settings.model_copy(update={"embedding_model": f"local:{weights}"})
    )
    assert embedder.model == "local:eight-words"
    assert len(await embedder.embed(["car"])) == 1


def test_a_folder_without_a_model_is_an_error_of_the_settings(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="there is no model in"):
        choose_embedder(settings.model_copy(update={"embedding_model": f"local:{tmp_path}"}))


async def test_a_broken_model_says_so_at_its_first_use(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((weights / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    embedder = await asyncio.to_thread(LocalEmbedder, str(tmp_path))
    with pytest.raises(EmbedderUnavailable, match="can't be loaded"):
        await embedder.embed(["car"])
