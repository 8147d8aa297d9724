"""Striking secrets out of texts: a secret as it is, and as it comes back after somebody has encoded it.

Whoever writes JSON, URLs or HTML decides what to escape and how often; so each character that anybody escapes is looked
for in all its spellings. Base64 and hexadecimal digits change all characters and are forms of their own. All of it is
made once per secret, which takes tens of milliseconds for a long one, so it is done on a thread; striking takes
microseconds for a text of some kilobytes, and time in proportion to the text, whatever it is. What nobody can promise
is to find a secret that was taken apart, encrypted or spelt backwards.
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
_OPENING: Final = 40
"""Characters of a form that are one pattern."""
_BACKSLASHES: Final = re.compile(r"\\+")
_BACKSLASH: Final = r"(?:\\|(?i:%(?:25)*5c)|&(?:amp;)*(?:#0*92|(?i:#x0*5c));)"
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
        self._spelt: Final = tuple(_Spelt(form) for form in ordered if not _PLAIN.fullmatch(form))
        self._beginnings: Final = tuple({spelt for form in ordered for spelt in (form, json.dumps(form)[1:-1])})

    def strike(self, text: str, *, cut: bool = False) -> str:
        """`text` with all forms of the secrets replaced; where it was `cut`, also the beginning of one at its end."""
        for spelt in self._spelt:
            text = spelt.strike(text)
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


class _Spelt:
    """A form in whose spelling somebody may have had a say. Of a long one only the beginning is one pattern, for a
    pattern takes long to make; from there on it is followed character by character."""

    def __init__(self, form: str) -> None:
        form = _BACKSLASHES.sub(r"\\", form)  # each level of JSON doubles them: how many there are says nothing
        self._opening: Final = re.compile(_pattern(form[:_OPENING]))
        self._rest: Final = tuple(_character(char) for char in form[_OPENING:])

    def strike(self, text: str) -> str:
        if not self._rest:
            return self._opening.sub(STRUCK, text)
        kept: list[str] = []
        at = 0
        while found := self._opening.search(text, at):
            kept += text[at : found.start()], STRUCK
            at = self._followed(text, found.end())
        return "".join((*kept, text[at:])) if kept else text

    def _followed(self, text: str, at: int) -> int:
        """Where the form ends, or where the text is no more what it says: so much of it is no chance."""
        ends = {at}
        for char, spelling in self._rest:
            further = {found.end() for end in ends if (found := spelling.match(text, end))}
            further |= {end + 1 for end in ends if text.startswith(char, end)}
            if not further:
                break
            ends = further
        return max(ends)


def _character(char: str) -> tuple[str, re.Pattern[str]]:
    return char, re.compile(_pattern_of(char))


def _pattern(form: str) -> str:
    """A pattern of `form` with its characters as they are or escaped: for JSON within JSON and so on, where each level
    doubles the backslashes, for URLs within URLs, and for HTML.

    Takes linear time: it begins with no backslash, and never goes back over any.
    """
    bare = form.lstrip("\\")
    if not bare:
        return r"\\"
    first = bare[0] if _PLAIN.fullmatch(bare[0]) else f"(?:{'|'.join(_spellings(bare[0]))})"
    return (re.escape(first) if first == bare[0] else first) + "".join(_pattern_of(char) for char in bare[1:])


def _pattern_of(char: str) -> str:
    """One character after others."""
    if _PLAIN.fullmatch(char):
        return re.escape(char)
    if char == "\\":
        return f"{_BACKSLASH}++"
    return f"{_BACKSLASH}*+(?:{'|'.join(_spellings(char))})"


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
