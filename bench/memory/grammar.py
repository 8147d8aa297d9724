"""The grammars that corpora are generated from: topics with lines to fill in, and words that mean the same.

A grammar is a text file of ours in `grammars/`: sections in brackets, lines of `name: line` and `name = word | word`.
In a line `{a}` stands for one word of the class `a` of its section, drawn anew each time, and `{v}` for a value.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

_SECTION: Final = re.compile(r"\[(.+)\]")
_WRAPPED: Final = 0.5
_USUAL: Final = 0.45
_LINE: Final = re.compile(r"(\w+)\s*([:=])\s*(.+)")


@dataclass(slots=True)
class Topic:
    """One section: its lines by name, and its classes of words."""

    name: str
    lines: dict[str, list[str]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)

    @property
    def values(self) -> Sequence[str]:
        return self.words["v"]

    def said(self, name: str, chance: random.Random, **given: str) -> str:
        """A line of this name, filled in."""
        return self.filled(chance.choice(self.lines[name]), chance, **given)

    def filled(self, line: str, chance: random.Random, **given: str) -> str:
        drawn = {
            name: chance.choice(among) if name == "v" else _drawn(among, chance)
            for name, among in self.words.items()
            if name not in given
        }
        text = line.format(**drawn, **given)
        return text[:1].upper() + text[1:]


def topics(name: str) -> Mapping[str, Topic]:
    """The sections of a grammar, by name."""
    found: dict[str, Topic] = {}
    topic = Topic("")
    text = resources.files(__package__ or "").joinpath("grammars", f"{name}.txt").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if section := _SECTION.fullmatch(line.strip()):
            topic = found.setdefault(section[1], Topic(section[1]))
        elif pair := _LINE.fullmatch(line.strip()):
            name_of, sign, rest = pair.groups()
            if sign == ":":
                topic.lines.setdefault(name_of, []).append(rest)
            else:
                topic.words[name_of] = [word.strip() for word in rest.split("|")]
        else:
            raise ValueError(f"{name}.txt, line {number}: neither a section nor a line of one: {line!r}")
    return found


class Around:
    """Puts something before and after lines, so that no two in one place are the same."""

    def __init__(self, topic: Topic, chance: random.Random) -> None:
        self._topic = topic
        self._chance = chance
        self._seen: set[str] = set()

    def wrapped(self, line: str) -> str:
        """The line, mostly with something around it."""
        while True:
            parts = [line]
            if self._chance.random() < _WRAPPED:
                parts.insert(0, self._chance.choice(self._topic.lines["lead"]))
            if self._chance.random() < _WRAPPED:
                parts.append(self._chance.choice(self._topic.lines["tail"]))
            text = ("" if not line.isascii() else " ").join(parts)
            if text not in self._seen:
                self._seen.add(text)
                return text


def _drawn(words: Sequence[str], chance: random.Random) -> str:
    """One of the words; the first is the usual one."""
    return words[0] if chance.random() < _USUAL else chance.choice(words)
