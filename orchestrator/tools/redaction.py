"""Striking secrets out of texts: a secret as it is, and as it comes back after somebody has encoded it.

Whoever writes JSON, URLs or HTML decides what to escape and how often; so each character that anybody escapes is looked
for in all its spellings. Base64 and hexadecimal digits change all characters and are forms of their own. All of it is
made once per secret; striking takes microseconds for a text of some kilobytes, and time in proportion to the text,
whatever it is. What nobody can promise is to find a secret that was taken apart, encrypted or spelt backwards.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

STRUCK: Final = "[redacted]"

_SHORTEST_ENCODED: Final = 6
"""Characters. The encoded form of a shorter secret may be part of any text."""
_SHORTEST_LINE: Final = 16
_SHORTEST_TAIL: Final = 4
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~-]+")
"""What nobody escapes."""
_BACKSLASH: Final = r"(?:\\|(?i:%(?:25)*5c))"
_SHORT_ESCAPES: Final = {"\n": "n", "\t": "t", "\r": "r", "\f": "f", "\b": "b"}
_ENTITIES: Final = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_URL_SAFE: Final = str.maketrans("+/", "-_")


class Redaction:
    """The forms of some secrets. Never changed, so that threads may use it."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found = {form for secret in secrets for form in forms(secret)}
        # The longest first: a form may be part of another.
        ordered = sorted(found, key=lambda form: (-len(form), form))
        self._plain: Final = tuple(form for form in ordered if _PLAIN.fullmatch(form))
        self._patterns: Final = tuple(re.compile(_pattern(form)) for form in ordered if not _PLAIN.fullmatch(form))
        self._beginnings: Final = tuple({spelt for form in ordered for spelt in (form, json.dumps(form)[1:-1])})

    def strike(self, text: str, *, cut: bool = False) -> str:
        """`text` with all forms of the secrets replaced; where it was `cut`, also the beginning of one at its end."""
        for pattern in self._patterns:
            text = pattern.sub(STRUCK, text)
        for form in self._plain:
            if form in text:
                text = text.replace(form, STRUCK)
        if cut:
            starts = [start for form in self._beginnings if (start := _begun(text, form)) is not None]
            if starts:
                return text[: min(starts)] + STRUCK
        return text


def forms(secret: str) -> set[str]:
    """`secret`, its long lines, and what it looks like in base64 at any place within something longer and in
    hexadecimal digits, all before anybody escapes them."""
    plain = {secret, secret.strip()} - {""}
    plain |= {line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORTEST_LINE}
    return plain | {form for text in plain for form in _encoded(text.encode()) if len(form) >= _SHORTEST_ENCODED}


def _encoded(data: bytes) -> Iterator[str]:
    yield data.hex()
    yield data.hex().upper()
    found = [base64.b64encode(data).decode()]
    for offset in range(3):
        # Of each place at which it can begin in something longer, the characters that depend on nothing but itself.
        text = base64.b64encode(b"\0" * offset + data).decode()
        found.append(text[(0, 2, 3)[offset] : (offset + len(data)) * 8 // 6])
    for text in found:
        yield text
        yield text.translate(_URL_SAFE)


def _pattern(form: str) -> str:
    """A pattern of `form` with its characters as they are or escaped: for JSON within JSON and so on, where each level
    doubles the backslashes, for URLs within URLs, and for HTML.

    Takes linear time: it begins with no backslash, and never goes back over any.
    """
    parts: list[str] = []
    for char in form.lstrip("\\"):
        if _PLAIN.fullmatch(char):
            parts.append(char if char.isalnum() else re.escape(char))
        elif char == "\\":
            parts.append(f"{_BACKSLASH}++")
        elif parts:
            parts.append(f"{_BACKSLASH}*+(?:{'|'.join(_spellings(char))})")
        else:
            parts.append(f"(?:{'|'.join(_spellings(char))})")
    return "".join(parts) or r"\\"


def _spellings(char: str) -> Iterator[str]:
    units = char.encode("utf-16-be", "surrogatepass")
    yield "(?i:" + f"{_BACKSLASH}++".join(f"u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)) + ")"
    if char in _SHORT_ESCAPES:
        yield _SHORT_ESCAPES[char]
    yield "(?i:" + "".join(f"%(?:25)*{byte:02x}" for byte in char.encode("utf-8", "surrogatepass")) + ")"
    if char == " ":
        yield r"\+"
    numbers = rf"#0*{ord(char)}|(?i:#x0*{ord(char):x})"
    yield f"&(?:amp;)*(?:{numbers}{'|' + _ENTITIES[char] if char in _ENTITIES else ''});"
    yield re.escape(char)


def _begun(text: str, form: str) -> int | None:
    """Where the beginning of `form` stands that the end of `text` cuts off."""
    start = max(0, len(text) - len(form) + 1)
    opening = form[:_SHORTEST_TAIL]
    while (start := text.find(opening, start)) >= 0:
        if form.startswith(text[start:]):
            return start
        start += 1
    return None
