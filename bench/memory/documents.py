"""Manuals of machines, cut into passages, and what is asked of them.

Each shelf holds the manuals of one firm: four models of each kind of machine, alike but for their numbers, so that for
each passage that answers a question there are others that say the same of another model. Which model it is about stands
in the context of a passage, as headings do, and seldom in its text. Around the passages that tell something are others
in the same words that don't.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from zlib import crc32

from bench.memory.corpus import Asked, Corpus
from bench.memory.grammar import Around, Topic, topics
from memory.records import NewMemory

_SHELVES: Final = 2
_QUESTIONS: Final = 420
_MODELS: Final = 4
_SHORT: Final = 0.15
_CHATS: Final = (0, 2)  # passages around each that tells something
_FIRMS: Final[Mapping[str, Sequence[str]]] = {"en": ("Norvik", "Talbrand"), "zh": ("海辰", "北岳")}
_HEADING: Final = {"en": "{firm} {number} {kind}, {head}", "zh": "{firm}{number}{kind} {head}"}
_NAMED: Final = {"en": ("{kind} {number}", "{number} {kind}"), "zh": ("{number}{kind}", "{kind}{number}")}


def documents(language: str, *, seed: int, questions: int = _QUESTIONS) -> Corpus:
    """A corpus in "en" or "zh"; with fewer questions there are fewer manuals."""
    chance = random.Random(f"{seed} documents {language}")
    grammar = dict(topics(f"documents_{language}"))
    around = grammar.pop("around")
    machines = [*grammar.pop("machines").words.values()]
    if questions < _QUESTIONS:
        machines = machines[: max(1, len(machines) * questions // _QUESTIONS)]
    shelves: list[list[NewMemory]] = []
    asked: list[Asked] = []
    for shelf in range(_SHELVES):
        passages: list[NewMemory] = []
        possible: list[Asked] = []
        for kinds in machines:
            first = chance.randint(20, 80) * 10
            for model in range(_MODELS):
                number = str(first + 2 * model)
                firm = _FIRMS[language][shelf]
                wrap = Around(around, chance).wrapped
                sections = [*grammar.values()]
                _manual(language, firm, number, kinds, sections, wrap, shelf, passages, possible, chance)
        shelves.append(passages)
        asked += chance.sample(possible, min(len(possible), -(-questions // _SHELVES)))
    return Corpus("documents", language, shelves, asked[:questions])


def _manual(
    language: str,
    firm: str,
    number: str,
    kinds: Sequence[str],
    sections: list[Topic],
    wrapped: Callable[[str], str],
    shelf: int,
    passages: list[NewMemory],
    asked: list[Asked],
    chance: random.Random,
) -> None:
    thread = f"{firm} {number} {kinds[0]}"
    chance.shuffle(sections)
    place = 0
    for topic in sections:
        lines = [topic.said("short" if chance.random() < _SHORT else "plain", chance)]
        around = [chance.choice(sections).said("chat", chance) for _ in range(chance.randint(*_CHATS))]
        before = chance.randint(0, len(around))
        for line in [*around[:before], *lines, *around[before:]]:
            if line is lines[0]:
                name = chance.choice(_NAMED[language]).format(kind=chance.choice(kinds), number=number)
                asked.append(Asked(topic.said("ask", chance, p=name), shelf, frozenset([len(passages)])))
            head = topic.words["head"][0]
            heading = _HEADING[language].format(firm=firm, number=number, kind=kinds[0], head=head)
            passages.append(
                NewMemory(
                    wrapped(line),
                    kind="knowledge",
                    source=f"{thread}.pdf",
                    entities=(),
                    thread=thread,
                    place=place,
                    document_id=f"doc_{crc32(thread.encode()):032x}",
                    context=heading,
                )
            )
            place += 1
