"""Conversations of two people over many sessions of a year, and what is asked about them later.

In each session the two come to some topics. One opens, the other answers: in words of the topic, or shortly, so that
the answer shares no word with the question and stands beside a turn that does. The same topics come up again: for the
other person, with another answer, or as a remark that says nothing; the one thing that tells them apart is who speaks
and when. Questions take their words from the same classes as the answers, so some are shared and some only mean the
same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from bench.memory.corpus import Asked, Corpus
from bench.memory.grammar import Around, Topic, topics
from memory.records import NewMemory
from memory.words import context_of

_SHELVES: Final = 10
_QUESTIONS: Final = 420
_SESSIONS: Final = 22
_TOPICS: Final = (4, 7)  # of a session
_SHORT: Final = 0.3  # of the answers
_CHATS: Final = 4  # remarks on other topics after each answer, at most
_BEGINNING: Final = datetime(2025, 1, 7, 18, 30)

_PEOPLE: Final[Mapping[str, Sequence[str]]] = {
    "en": (
        *("Maria", "Tom", "Priya", "Lukas", "Grace", "Omar", "Ingrid", "Paulo", "Keiko", "Stefan"),
        *("Amara", "Dmitri", "Rosa", "Henrik", "Leila", "Bruno", "Sanna", "Viktor", "Nadia", "Felix"),
    ),
    "zh": (
        *("王芳", "李娜", "张伟", "陈静", "刘洋", "赵敏", "孙丽", "周强", "吴桐", "郑凯"),
        *("冯雪", "蒋涛", "沈岚", "韩冰", "杨帆", "朱琳", "秦朗", "许晴", "何川", "吕梅"),
    ),
}  # fmt: skip
_SMALL_TALK: Final[Mapping[str, Sequence[str]]] = {
    "en": (
        *("Ha, that sounds familiar.", "I have to run, the bus is coming.", "Good luck with that, {o}!"),
        *("It has been raining since Sunday.", "Let me call you back on Friday.", "My battery is nearly empty."),
        *("Say hello to everybody from me.", "You always have a story, {o}.", "Sorry, somebody is at the door."),
    ),
    "zh": (
        *("哈哈，听起来很熟悉。", "车来了，先走一步。", "{o}，祝你顺利！", "周日起一直下雨。", "周五再打给你。"),
        *("电量快没了。", "替我向大家问好。", "{o}总有故事。", "抱歉，有人敲门。"),
    ),
}  # fmt: skip
_IN_MONTH: Final = {"en": "In {m}: {q}", "zh": "{m}那次，{q}"}
_WHEN: Final = {"en": "When did {p} bring up {v}?", "zh": "{p}几时提到{v}？"}
_WHO: Final = {"en": "Who spoke of {v}?", "zh": "谁提过{v}？"}
_MONTHS: Final[Mapping[str, Sequence[str]]] = {
    "en": "January February March April May June July August September October November December".split(),  # noqa: SIM905
    "zh": [f"{month}月" for month in range(1, 13)],
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """Something that can be asked about."""

    place: int
    person: str
    topic: Topic
    value: str
    month: int


def conversations(language: str, *, seed: int, questions: int = _QUESTIONS) -> Corpus:
    """A corpus in "en" or "zh"; with fewer questions there are fewer conversations."""
    chance = random.Random(f"{seed} conversations {language}")
    sections = dict(topics(f"conversations_{language}"))
    around = sections.pop("around")
    grammar = [*sections.values()]
    shelves: list[list[NewMemory]] = []
    asked: list[Asked] = []
    people = [*_PEOPLE[language]]
    chance.shuffle(people)
    amount = max(1, _SHELVES * questions // _QUESTIONS)
    for shelf in range(amount):
        pair = (people[2 * shelf % len(people)], people[(2 * shelf + 1) % len(people)])
        turns, answers = _conversation(language, grammar, Around(around, chance), pair, shelf, chance)
        shelves.append(turns)
        chosen = chance.sample(answers, min(len(answers), -(-questions // amount)))
        asked += [_question(language, answer, answers, shelf, chance) for answer in chosen]
    return Corpus("conversations", language, shelves, asked[:questions])


def _conversation(
    language: str,
    grammar: Sequence[Topic],
    around: Around,
    pair: tuple[str, str],
    shelf: int,
    chance: random.Random,
) -> tuple[list[NewMemory], list[_Answer]]:
    turns: list[NewMemory] = []
    answers: list[_Answer] = []
    at = _BEGINNING + timedelta(days=chance.randrange(14))
    place = 0

    def say(speaker: str, text: str, session: int) -> None:
        nonlocal place
        turns.append(
            NewMemory(
                around.wrapped(text),
                source=f"session {session}",
                entities=(),
                thread=f"conversation {shelf}, session {session}",
                place=place,
                context=context_of(speaker, at),
            )
        )
        place += 1

    for session in range(_SESSIONS):
        place = 0
        for topic in chance.sample(list(grammar), chance.randint(*_TOPICS)):
            other, person = chance.sample(pair, 2)
            say(other, topic.said("open", chance, o=person), session)
            value = chance.choice(topic.values)
            answers.append(_Answer(len(turns), person, topic, value, at.month))
            say(person, topic.said("short" if chance.random() < _SHORT else "plain", chance, v=value), session)
            for _ in range(chance.randint(0, _CHATS)):
                speaker, listener = chance.sample(pair, 2)
                if chance.random() < 0.3:
                    say(speaker, chance.choice(_SMALL_TALK[language]).format(o=listener), session)
                else:
                    say(speaker, chance.choice(grammar).said("chat", chance, o=listener), session)
        at += timedelta(days=chance.randint(9, 21), minutes=chance.randint(-90, 90))
    return turns, answers


def _question(language: str, answer: _Answer, answers: Sequence[_Answer], shelf: int, chance: random.Random) -> Asked:
    same = [other for other in answers if other.topic is answer.topic and other.person == answer.person]
    valued = [other for other in answers if other.topic is answer.topic and other.value == answer.value]
    kind = chance.random()
    if kind < 0.08:
        return Asked(_WHO[language].format(v=answer.value), shelf, frozenset(other.place for other in valued))
    if kind < 0.16:
        text = _WHEN[language].format(p=answer.person, v=answer.value)
        return Asked(text, shelf, frozenset(other.place for other in valued if other.person == answer.person))
    text = answer.topic.said("ask", chance, p=answer.person)
    if len(same) > 1:  # only when it was said tells them apart
        text = _IN_MONTH[language].format(m=_MONTHS[language][answer.month - 1], q=text)
        same = [other for other in same if other.month == answer.month]
    return Asked(text, shelf, frozenset(other.place for other in same))
