"""Words as numbers."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256

import asyncpg
import pytest

from kernel.postgres import Pool
from memory.terms import WORD, Term
from memory.words import HIGHEST_IMPACT, MAX_TERMS, context_of, keys, number, numbers, rarity, sparse, words
from tests.memory.corpus import ENGLISH, MIXED, ZHONGWEN


def test_a_term_has_the_same_number_on_every_machine() -> None:
    assert number(Term("lisbon", WORD)) == 67897878
    assert all(0 <= number(Term(f"w{n}", WORD)) < 1 << 29 for n in range(1000))


def test_a_memory_has_the_same_words_on_every_machine_and_in_every_release() -> None:
    said = [words(text, context).literal() for text in [*ENGLISH, *ZHONGWEN, *MIXED] for context in (None, MIXED[0])]
    assert sha256("".join(said).encode()).hexdigest()[:16] == "ceaa69814d6788db"


def test_repetitions_say_more_and_length_less() -> None:
    once, often = words("tea cup table").impacts, words("tea tea tea").impacts
    assert max(once) < often[0] < HIGHEST_IMPACT
    assert max(words("tea " + " ".join(f"w{n}" for n in range(200))).impacts) < min(once)


def test_the_context_is_found_too() -> None:
    assert set(words("tea").numbers) < set(words("tea", "Maria on Monday").numbers)


def test_nothing_has_no_words() -> None:
    assert (words("?!").numbers, words("?!").length) == ((), 0)


def test_the_longest_text_fits() -> None:
    text = "".join(chr(0x4E00 + place * 7 % 20000) for place in range(8000))
    assert len(words(text).numbers) == MAX_TERMS
    assert number(Term(text[4000:4002], "B")) in words(text).numbers


def test_entries_hold_shelf_and_term() -> None:
    assert numbers(keys((1 << 33) - 1, [0, (1 << 29) - 1])) == [0, (1 << 29) - 1]
    assert max(keys((1 << 33) - 1, [(1 << 29) - 1])) < 1 << 63


def test_rare_words_are_worth_more_and_none_is_worth_nothing() -> None:
    worth = [rarity(1000, having) for having in (0, 1, 10, 500, 1000, 2000)]
    assert worth == sorted(worth, reverse=True)
    assert worth[-1] > 0


async def test_bm25_is_an_inner_product_in_postgres(database: Pool) -> None:
    said = words("tea and more tea in the harbour")
    worth = {number(Term("tea", WORD)): 3.0, number(Term("harbor", WORD)): 2.0, number(Term("oil", WORD)): 9.0}
    found = await database.fetchval(
        "SELECT -($1::text::sparsevec <#> $2::text::sparsevec)", said.literal(), sparse(sorted(worth.items()))
    )
    impacts = dict(zip(said.numbers, said.impacts, strict=True))
    assert found == pytest.approx(sum(worth[key] * impacts.get(key, 0.0) for key in worth), rel=1e-4)
    with pytest.raises(asyncpg.DataError):
        await database.fetchval("SELECT $1::text::sparsevec", "{0:1}/536870912")


def test_a_turn_is_found_by_who_spoke_and_when() -> None:
    assert context_of("Maria", datetime(2026, 3, 14)) == "Maria 2026-03-14 March Saturday 3月 星期六"
    assert context_of(" ", None) is None
    assert context_of(None, None, "Chapter 2") == "Chapter 2"
