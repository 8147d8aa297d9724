"""How text becomes terms: the one reading of text that the text index and the lexical embedder share.

Words of scripts that put spaces between them are case-folded, stripped of accents and English endings, and kept
whole. Scripts that don't (Chinese, Japanese, Thai…, and Korean, which glues endings on) are read as overlapping
pairs of characters, plus the single characters at less weight. Words without a meaning of their own are left out
(`vocabulary.py`), and words that fit anywhere ("user", "work", "喜欢") weigh little.

This runs here and not in Postgres, whose parser depends on the server's locale and takes a run of Chinese for
one word. A change of these rules changes what is stored: memory_words and the lexical embedder's vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from memory.vocabulary import LIGHT_WORDS, RUN_BREAKS, STOP_WORDS, without_ending

Grade = Literal["A", "B", "C", "D"]
"""How much a term says; see `WEIGHT`."""

WORD: Grade = "A"
PAIR: Grade = "B"
CHARACTER: Grade = "C"
LIGHT: Grade = "D"

WEIGHT: dict[Grade, float] = {WORD: 1.0, PAIR: 1.0, CHARACTER: 0.3, LIGHT: 0.2}

_LONGEST_WORD = 64  # what is longer is a key or a blob: its beginning identifies it

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u3096\u30a1-\u30fe"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"([{_UNSPACED}]+)|([^\W_{_UNSPACED}]+)(?:['’](?:s|t|d|m|re|ve|ll)\b)?")
_ASCII_TOKEN = re.compile(r"([a-z0-9]+)(?:'(?:s|t|d|m|re|ve|ll)\b)?")  # what `_TOKEN` is for ASCII, in half the time

_READ_WORDS: Final = 8192  # that are kept with their terms: 2 MB at most, and most words of a text are among them


class Term(NamedTuple):
    """One term of a text: letters and digits only."""

    text: str
    grade: Grade


def terms(text: str) -> Iterator[Term]:
    """The terms of `text`, in order, with repetitions."""
    if text.isascii():
        for word in _ASCII_TOKEN.findall(text.lower()):
            if word not in STOP_WORDS and (term := _word(word)) is not None:
                yield term
        return
    for match in _TOKEN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run, word = match.groups()
        if run is None:
            if word not in STOP_WORDS and (term := _word(word)) is not None:
                yield term
            continue
        # Segments between breaks, and with each break the light word that it was, if any.
        for index, part in enumerate(RUN_BREAKS.split(run)):
            if part and index % 2:
                yield Term(part, LIGHT)
            elif part:
                yield from _grams(part)


def _word(word: str) -> Term | None:
    return _known_word(word) if len(word) <= _LONGEST_WORD else _read_word(word)


def _read_word(word: str) -> Term | None:
    if not word.isascii():
        # After NFKC all that is left to decompose are accents.
        word = "".join(filter(str.isalnum, unicodedata.normalize("NFD", word)))
    if word.isascii() and word.isalpha():
        word = without_ending(word)
    if not word:
        return None
    return Term(word[:_LONGEST_WORD], LIGHT if word in LIGHT_WORDS else WORD)


_known_word = lru_cache(maxsize=_READ_WORDS)(_read_word)


def _grams(segment: str) -> Iterator[Term]:
    for character, following in zip(segment, [*segment[1:], ""], strict=True):
        # Hiragana is mostly grammar.
        grammar = _is_hiragana(character)
        if not grammar:
            yield Term(character, CHARACTER)
        if following:
            yield Term(character + following, CHARACTER if grammar and _is_hiragana(following) else PAIR)


def _is_hiragana(character: str) -> bool:
    return "\u3041" <= character <= "\u3096"
