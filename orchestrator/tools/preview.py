"""A value as Python would show it, cut at a length.

For values that untrusted code made: plain `repr` of three nested lists that share their parts needs gigabytes, so
the walk stops as soon as enough is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

_DEEPEST: Final = 60
_LONGEST_INTEGER: Final = 4_000  # digits; Python refuses to write out more than 4,300


class _Enough(Exception):
    """The limit is reached."""


def preview(value: object, limit: int) -> str:
    """`repr(value)` as far as it fits in `limit` characters; `…` stands for what does not."""
    walk = _Walk(limit)
    try:
        walk.show(value, 0)
    except _Enough:
        return "".join(walk.parts)[: limit - 1] + "…"
    return "".join(walk.parts)


class _Walk:
    def __init__(self, limit: int) -> None:
        self.parts: list[str] = []
        self._limit = limit
        self._left = limit

    def show(self, value: object, depth: int) -> None:
        if depth > _DEEPEST:
            self._put("…")
        elif isinstance(value, str | bytes):
            cut = len(value) > self._limit
            self._put(repr(value[: self._limit] if cut else value))
        elif isinstance(value, dict):
            self._items("{", value.items(), "}", depth)
        elif isinstance(value, list):
            self._sequence("[", value, "]", depth)
        elif isinstance(value, tuple):
            names = getattr(value, "_fields", None)
            if isinstance(names, tuple):
                self._record(type(value).__name__, zip(names, value, strict=False), depth)
            else:
                self._sequence("(", value, ",)" if len(value) == 1 else ")", depth)
        elif isinstance(value, set | frozenset):
            opening, closing = ("{", "}") if isinstance(value, set) and value else (f"{_name(value)}(", ")")
            self._sequence(opening, value, closing, depth)
        elif isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER * 3.32:
            self._put(f"<an integer of about {int((value.bit_length() - 1) * math.log10(2)) + 1} digits>")
        elif isinstance(attributes := getattr(value, "attributes", None), dict):  # an instance from the sandbox
            self._record(str(getattr(value, "name", _name(value))), attributes.items(), depth)
        else:
            self._put(repr(value))

    def _put(self, text: str) -> None:
        self.parts.append(text)
        self._left -= len(text)
        if self._left < 0:
            raise _Enough

    def _sequence(self, opening: str, items: Iterable[object], closing: str, depth: int) -> None:
        self._put(opening)
        for index, item in enumerate(items):
            if index:
                self._put(", ")
            self.show(item, depth + 1)
        self._put(closing)

    def _items(self, opening: str, items: Iterable[tuple[object, object]], closing: str, depth: int) -> None:
        self._put(opening)
        for index, (key, item) in enumerate(items):
            if index:
                self._put(", ")
            self.show(key, depth + 1)
            self._put(": ")
            self.show(item, depth + 1)
        self._put(closing)

    def _record(self, name: str, fields: Iterable[tuple[object, object]], depth: int) -> None:
        self._put(f"{name}(")
        for index, (field, item) in enumerate(fields):
            self._put(f"{', ' if index else ''}{field}=")
            self.show(item, depth + 1)
        self._put(")")


def _name(value: object) -> str:
    return type(value).__name__
