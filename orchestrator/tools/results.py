"""What a tool returned, as text that a model can read and Postgres can hold.

Always true of the text: valid UTF-8, no NUL characters, no lone surrogates (Postgres takes neither in text or
json), not longer than the cap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_MAX_DEPTH: Final = 200


def clean(text: str) -> str:
    """`text` with every NUL and lone surrogate replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


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
    note = f"\n[cut: {len(data)} bytes in all, only the beginning is shown]"
    return data[: limit - len(note)].decode(errors="ignore") + note


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
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_cleaned(item, depth + 1) for item in value]
    raise TypeError(f"{type(value).__name__} is not JSON")
