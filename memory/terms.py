"""How text becomes terms: the one reading of text that the text index and the lexical embedder share.

Words of scripts that put spaces between them are case-folded, stripped of accents and English endings, and kept
whole. Scripts that don't (Chinese, Japanese, Thai…, and Korean, which glues endings on) are read as overlapping
pairs of characters, plus the single characters at less weight. Words without a meaning of their own are left out
(`vocabulary.py`), and words that fit anywhere ("user", "work", "喜欢") weigh little.

This runs here and not in Postgres, whose parser depends on the server's locale and takes a run of Chinese for
one word. A change of these rules changes what is stored: the `search` column and the lexical embedder's vectors.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple
from zlib import crc32

from memory.vocabulary import LIGHT_WORDS, RUN_BREAKS, STOP_WORDS, without_ending

Grade = Literal["A", "B", "C", "D"]
"""How much a term says; the letter is the weight label that the term carries in the text index."""

WORD: Grade = "A"
PAIR: Grade = "B"
CHARACTER: Grade = "C"
LIGHT: Grade = "D"

WEIGHT: dict[Grade, float] = {WORD: 1.0, PAIR: 1.0, CHARACTER: 0.3, LIGHT: 0.2}
RANK_WEIGHTS = "{" + ",".join(str(WEIGHT[grade]) for grade in (LIGHT, CHARACTER, PAIR, WORD)) + "}"
"""The same as the array that `ts_rank` wants: D, C, B, A."""

_LONGEST_WORD = 64  # what is longer is a key or a blob: its beginning identifies it
_MOST_POSITIONS = 8  # of one term in one text; ts_rank hardly counts more
_LAST_POSITION = 16383  # Postgres keeps no higher one
_MOST_QUERY_TERMS = 16
_ENOUGH_WEIGHT = 12.0  # a long question need not be covered whole: this much of it is full coverage
_SINGLE_OCCURRENCE = 6 / math.pi**2  # what ts_rank makes of a term that occurs once, as a share of its weight

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u3096\u30a1-\u30fe"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"([{_UNSPACED}]+)|((?:(?![{_UNSPACED}])[^\W_])+)(?:['’](?:s|t|d|m|re|ve|ll)\b)?")


class Term(NamedTuple):
    """One term of a text: letters and digits only."""

    text: str
    grade: Grade


def terms(text: str) -> Iterator[Term]:
    """The terms of `text`, in order, with repetitions."""
    for match in _TOKEN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run, word = match.groups()
        if run is None:
            if word not in STOP_WORDS:
                yield from _word(word)
            continue
        # Segments between breaks, and with each break the light word that it was, if any.
        for index, part in enumerate(RUN_BREAKS.split(run)):
            if part and index % 2:
                yield Term(part, LIGHT)
            elif part:
                yield from _grams(part)


def _word(word: str) -> Iterator[Term]:
    if not word.isascii():
        # After NFKC all that is left to decompose are accents.
        word = "".join(filter(str.isalnum, unicodedata.normalize("NFD", word)))
    if word.isascii() and word.isalpha():
        word = without_ending(word)
    if word:
        yield Term(word[:_LONGEST_WORD], LIGHT if word in LIGHT_WORDS else WORD)


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


def owner_tag(org_id: str, user_id: str | None) -> str:
    """What the terms of an owner's memories begin with in the text index.

    It makes each owner's terms a part of the index of their own: a search reads what its asker may see, and not the
    terms of a thousand other orgs. Tags of two owners may coincide, so they spare work and protect nothing.
    """
    return format(crc32(f"{org_id} {user_id}".encode() if user_id is not None else org_id.encode()), "08x")


def document(found: Iterable[Term], tag: str) -> str:
    """The terms of a memory as the text of a `tsvector`, with positions from 1 and their grade as weight label."""
    positions: dict[Term, list[int]] = {}
    for position, term in enumerate(found, start=1):
        positions.setdefault(term, []).append(min(position, _LAST_POSITION))
    return " ".join(
        f"'{tag}{text}':" + ",".join([f"{position}{grade}" for position in at[:_MOST_POSITIONS]])
        for (text, grade), at in positions.items()
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What the text arm looks for: a memory with any of the terms, ranked by how much of them it covers.

    `tsquery` is None where the query has no terms. `ts_rank` times `scale` is the weighted share of the terms that a
    memory has: 1 where it has each once, somewhat more where it repeats them.
    """

    tsquery: str | None
    scale: float


def question(found: Iterable[Term], tag: str) -> Question:
    """The question that asks the owner with this tag for the terms.

    Of many terms it keeps the telling ones: often used, then long, then early.
    """
    counts = Counter(found)
    kept = sorted(counts, key=lambda term: (-WEIGHT[term.grade] * counts[term], -len(term.text)))
    kept = kept[:_MOST_QUERY_TERMS]
    if not kept:
        return Question(None, 0.0)
    tsquery = " | ".join([f"'{tag}{term.text}'" for term in kept])
    weight = min(sum(WEIGHT[term.grade] for term in kept), _ENOUGH_WEIGHT)
    return Question(tsquery, len(kept) / (weight * _SINGLE_OCCURRENCE))  # ts_rank has divided by the number of terms
