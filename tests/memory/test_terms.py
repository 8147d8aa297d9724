"""How text becomes terms."""

from __future__ import annotations

import pytest

from memory.terms import CHARACTER, LIGHT, PAIR, WORD, Term, terms


def texts(text: str) -> list[str]:
    return [term.text for term in terms(text)]


@pytest.mark.parametrize(
    "forms",
    [
        "deploy deploys deployed deploying deployment Deployments",
        "allergy allergies allergic",
        "prefer prefers preferred preference preferences",
        "colour color colours Colors",
        "favourite favorite favourites",
        "organise organize organised organisation organization organizer organiser",
        "live lives living lived",
        "run runs running",
        "name names named naming",
        "move moves moving moved",
        "retry retries retried retrying",
        "analysis analyses analyse",
        "manage manager manages management",
        "café CAFÉ cafe Café",
        "Straße STRASSE",
    ],
)
def test_the_forms_of_a_word_are_one_term(forms: str) -> None:
    assert len(set(texts(forms))) == 1


@pytest.mark.parametrize("words", ["policy police", "need needle", "is this", "status state", "car care"])
def test_different_words_stay_different(words: str) -> None:
    found = texts(words)
    assert len(found) == len(set(found))


def test_words_without_a_meaning_of_their_own_are_left_out() -> None:
    assert texts("Who are you, and what is it that I should do?") == []
    assert texts("你好，请问这是什么？") == []


def test_words_that_fit_anywhere_are_light() -> None:
    assert list(terms("the user's work")) == [Term("user", LIGHT), Term("work", LIGHT)]
    assert list(terms("用户喜欢")) == [Term("用户", LIGHT), Term("喜欢", LIGHT)]


def test_possessives_and_contractions_leave_the_word() -> None:
    assert texts("Alice's dog doesn’t bark") == ["alic", "dog", "bark"]


def test_chinese_is_read_as_pairs_and_characters() -> None:
    assert list(terms("颜色")) == [Term("颜", CHARACTER), Term("颜色", PAIR), Term("色", CHARACTER)]


def test_chinese_and_latin_side_by_side_are_kept_apart() -> None:
    assert texts("用Postgres存") == ["用", "postgr", "存"]


def test_full_width_letters_and_digits_are_plain_ones() -> None:
    assert texts("ＡＢＣ１２３") == ["abc123"]


def test_a_blob_is_known_by_its_beginning() -> None:
    [term] = terms("x1" * 3000)
    assert term == Term(("x1" * 3000)[:64], WORD)
