"""The offline embedder: vectors of spelling."""

from __future__ import annotations

import hashlib
import math

import orjson
import pytest

from memory.embedders.lexical import LexicalEmbedder, vector
from tests.memory.corpus import ENGLISH, ENGLISH_UNRELATED, MIXED, ZH_UNRELATED, ZHONGWEN

FLOOR = LexicalEmbedder.nearness.floor


def cosine(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(vector(one), vector(other), strict=True))


async def test_vectors_have_unit_length_and_the_promised_dimensions() -> None:
    vectors = await LexicalEmbedder().embed(["one cat", "猫", "word " * 3000])
    assert {len(found) for found in vectors} == {LexicalEmbedder.dimensions}
    assert all(math.isclose(math.hypot(*found), 1.0, abs_tol=1e-4) for found in vectors)


async def test_a_text_without_terms_is_the_zero_vector() -> None:
    [found] = await LexicalEmbedder().embed(["?!"])
    assert not any(found)


def test_vectors_are_the_same_on_every_machine_and_in_every_release_of_this_model() -> None:
    digest = hashlib.sha256(orjson.dumps([[round(x, 4) for x in vector(text)] for text in ENGLISH | ZHONGWEN]))
    assert (LexicalEmbedder.model, digest.hexdigest()[:16]) == ("lexical-1", "2ce66de6f5d351c0")


def test_all_digits_are_the_same_on_every_machine_and_in_every_release_of_this_model() -> None:
    texts = [*ENGLISH, *ZHONGWEN, *MIXED, " ".join([*ENGLISH, *ZHONGWEN, *MIXED] * 3)]
    digits = [[round(x * 1e6) for x in vector(text)] for text in texts]
    assert hashlib.sha256(orjson.dumps(digits)).hexdigest()[:16] == "15e4538d017975f9"
    assert [[round(x, 6) for x in vector(text)] for text in texts] == [vector(text) for text in texts]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the quarterly report is due in March", "when is the quarterly report due?"),
        ("Kubernetes cluster upgrade", "kubernets cluster upgrade"),
        ("支付失败后自动重试", "支付失败会重试吗"),
    ],
)
def test_texts_that_share_spelling_are_near(one: str, other: str) -> None:
    assert cosine(one, other) > 2 * FLOOR


@pytest.mark.parametrize(("memories", "queries"), [(ENGLISH, ENGLISH_UNRELATED), (ZHONGWEN, ZH_UNRELATED)])
def test_unrelated_texts_are_below_the_floor(memories: dict[str, str], queries: list[str]) -> None:
    assert max(cosine(memory, query) for memory in memories for query in queries) < FLOOR
