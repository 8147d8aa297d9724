"""Striking secrets out of texts: a secret as it is, and as it comes back after somebody has encoded it.

The forms of a secret are made once; striking looks for each of them, which takes microseconds for a text of some
kilobytes. What nobody can promise is to find a secret that was taken apart, encrypted or spelt backwards.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

STRUCK: Final = "[redacted]"

_SHORTEST_ENCODED: Final = 6
"""Characters. The encoded form of a shorter secret may be part of any text."""
_SHORTEST_LINE: Final = 16
_SHORTEST_TAIL: Final = 4


class Redaction:
    """The forms of some secrets. Never changed, so that threads may use it."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found = {form for secret in secrets for form in forms(secret)}
        # The longest first: a form may be part of another.
        self._forms: Final = tuple(sorted(found, key=lambda form: (-len(form), form)))

    def strike(self, text: str, *, cut: bool = False) -> str:
        """`text` with all forms of the secrets replaced; where it was `cut`, also the beginning of one at its end."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, STRUCK)
        if cut:
            for form in self._forms:
                if (start := _begun(text, form)) is not None:
                    return text[:start] + STRUCK
        return text


def forms(secret: str) -> set[str]:
    """`secret` and what it looks like in JSON (twice over: in a JSON text within JSON), in a URL, in HTML, in base64 at
    any place within something longer, and in hexadecimal digits."""
    plain = {secret, secret.strip()} - {""}
    plain |= {line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORTEST_LINE}
    encoded = {form for text in plain for form in _encoded(text) if len(form) >= _SHORTEST_ENCODED}
    found = plain | encoded
    for _ in range(2):
        found |= {escaped for form in found for escaped in _in_json(form)}
    return found


def _encoded(text: str) -> Iterator[str]:
    for quoted in (quote(text, safe=""), quote(text), quote_plus(text)):
        yield quoted
        yield _lower_escapes(quoted)
    yield html.escape(text)
    yield html.escape(text, quote=False)
    data = text.encode()
    yield data.hex()
    yield data.hex().upper()
    yield from _base64(data)


def _lower_escapes(quoted: str) -> str:
    parts = quoted.split("%")
    return parts[0] + "".join(f"%{part[:2].lower()}{part[2:]}" for part in parts[1:])


def _base64(data: bytes) -> Iterator[str]:
    """Its own, and of each of the three places at which it can begin in something longer: the characters that depend on
    nothing but itself."""
    whole = base64.b64encode(data).decode()
    found = [whole]
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + data).decode()
        found.append(text[(0, 2, 3)[offset] : (offset + len(data)) * 8 // 6])
    for text in found:
        yield text
        yield text.translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")


def _in_json(text: str) -> Iterator[str]:
    for ensure_ascii in (True, False):
        escaped = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
        yield escaped
        yield escaped.replace("/", "\\/")


def _begun(text: str, form: str) -> int | None:
    """Where the beginning of `form` stands that the end of `text` cuts off."""
    start = max(0, len(text) - len(form) + 1)
    opening = form[:_SHORTEST_TAIL]
    while (start := text.find(opening, start)) >= 0:
        if form.startswith(text[start:]):
            return start
        start += 1
    return None
