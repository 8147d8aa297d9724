"""What a tool returned, as text that a model can read and Postgres can hold.

Always true of the text: valid UTF-8, no NUL characters, no lone surrogates (Postgres takes neither in text or
json), not longer than the cap. However much a tool returns, what is made of it takes memory and time for some multiples
of the cap, no more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, Protocol

import orjson

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_MAX_DEPTH: Final = 200
_HEAVY: Final = 1_048_576
"""What is more than this, in characters or what costs as much, is not rendered in full only to be cut."""
_MARGIN: Final = 65_536
"""Characters that are looked at beyond the cap: a secret that the cap cuts in two must be found whole."""


class Strike(Protocol):
    """Takes secrets out of a text: `Vault.redact`."""

    def __call__(self, text: str, *, cut: bool = False) -> str: ...


def clean(text: str) -> str:
    """`text` with every NUL and lone surrogate replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def render(value: object, limit: int, strike: Strike) -> str:
    """A result as text of at most `limit` bytes, without secrets. Bytes become a note that says how many they are.

    Raises:
        TypeError, ValueError: as for `as_text`.
    """
    if isinstance(value, str):
        if len(value) <= max(_HEAVY, limit + _MARGIN):
            return clip(strike(clean(value)), limit)
        start = strike(clean(value[: limit + _MARGIN]), cut=True)
        return _headed(start, limit, f"{len(value)} characters in all")
    if isinstance(value, bytes | bytearray | memoryview):
        return _binary(value)
    if not _heavy(value):
        return clip(strike(as_text(value)), limit)
    start = strike("".join(_beginning(value, limit + _MARGIN)), cut=True)
    return _headed(start, limit, f"more than {len(start)} characters in all")


def as_text(value: object) -> str:
    """A text as it is, any other JSON value as compact JSON; both clean.

    Raises:
        TypeError: a value that JSON does not know.
        ValueError: nested deeper than 200, or in a circle.
    """
    if isinstance(value, str):
        return clean(value)
    try:
        data = orjson.dumps(value)
    except TypeError:  # also for lone surrogates and integers over 64 bits, which the slow way can take
        return _slowly(value)
    # An escaped NUL is harmless in this text, but not for whoever parses it and stores the parts.
    return data.decode() if b"\\u0000" not in data else _slowly(value)


def clip(text: str, limit: int) -> str:
    """`text` if its UTF-8 form has at most `limit` bytes; otherwise its beginning and a note.

    Within the limit, which must have room for the note: 100 bytes or more.
    """
    if len(text) * 4 <= limit:
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    return _headed(text, limit, f"{len(data)} bytes in all")


def _headed(text: str, limit: int, size: str) -> str:
    """As much of the text's beginning as leaves room for a note that says how long it is."""
    note = f"\n[cut: {size}, only the beginning is shown]"
    return text[:limit].encode()[: limit - len(note)].decode(errors="ignore") + note


def _binary(value: bytes | bytearray | memoryview) -> str:
    return f"[binary content of {memoryview(value).nbytes} bytes, not shown]"


def _heavy(value: object) -> bool:
    """Whether the text of `value` is longer than is worth rendering in full. Looks at no more of it than decides it."""
    weight = 0
    below: list[Iterator[object]] = [iter((value,))]
    while below:
        for item in below[-1]:
            weight += len(item) if isinstance(item, str) else 4
            if weight > _HEAVY or len(below) > _MAX_DEPTH:
                return True
            if isinstance(item, Mapping):
                below.append(chain.from_iterable(item.items()))
                break
            if _is_list(item):
                below.append(iter(item))  # type: ignore[call-overload]  # it is a sequence
                break
        else:
            below.pop()
    return False


def _beginning(value: object, limit: int) -> Iterator[str]:
    """The first characters of `value` as JSON, a little more than `limit` at most."""
    written = 0
    for piece in _pieces(value, limit, 0):
        yield piece
        written += len(piece)
        if written > limit:
            return


def _pieces(value: object, limit: int, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, Mapping):
        yield "{"
        for place, (key, item) in enumerate(value.items()):
            yield f"{',' if place else ''}{_slowly(str(key)[:limit])}:"
            yield from _pieces(item, limit, depth + 1)
        yield "}"
    elif _is_list(value):
        yield "["
        for place, item in enumerate(value):  # type: ignore[arg-type]  # it is a sequence
            if place:
                yield ","
            yield from _pieces(item, limit, depth + 1)
        yield "]"
    else:
        yield _slowly(value[:limit] if isinstance(value, str) else value)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _slowly(value: object) -> str:
    return json.dumps(_cleaned(value, 0), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _cleaned(value: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): _cleaned(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return _binary(value)
    if isinstance(value, Sequence):
        return [_cleaned(item, depth + 1) for item in value]
    raise TypeError(f"{type(value).__name__} is not JSON")
