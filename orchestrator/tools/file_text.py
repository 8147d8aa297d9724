"""Passages of texts: some lines out of a stream of bytes, of which no more is held than is shown.

UTF-8 is taken for granted until the bytes say otherwise; a byte order mark is believed. What has NUL bytes is not text.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Encoding: TypeAlias = Literal[
    "auto", "utf-8", "utf-16", "latin-1", "cp1252", "iso8859-15", "shift_jis", "euc_jp", "euc_kr", "gb18030", "big5",
    "koi8-r", "cp1251"
]  # fmt: skip

MOST_CHARACTERS: Final = 40_000
"""Of one passage."""

_MOST_BYTES: Final = 60_000
_LOOKED_AT: Final = 8_192
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Passage:
    """Some lines.

    `last` is the number of the last line of which something is shown, `cut_at` how many characters of it have been
    shown or left out if it goes on, `more` whether anything comes after the passage. `lines` counts the lines that were
    seen: all of them unless there is more.
    """

    text: str
    encoding: str
    last: int
    cut_at: int | None
    more: bool
    lines: int


def guessed_encoding(head: bytes) -> str | None:
    """The encoding of a text that begins so; None if it is no text."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return None if b"\0" in head[:_LOOKED_AT] else "utf-8"


async def passage(
    pieces: AsyncIterator[bytes], offset: int, limit: int, skip: int, encoding: Encoding, *, size: int
) -> Passage | None:
    """`limit` lines from line `offset` on, without the first `skip` characters of the first one; None if it is no text.

    What is no valid UTF-8 is read as Windows-1252, if no encoding is given; otherwise what can't be read is replaced
    by U+FFFD.
    """
    head = b""
    async for piece in pieces:
        head += piece
        if len(head) >= min(_LOOKED_AT, size):
            break
    known = guessed_encoding(head) if encoding == "auto" else encoding
    if known is None:
        return None
    if encoding == "auto" and known == "utf-8":
        # Both read side by side, for the stream can't be read again, until UTF-8 turns out to be wrong.
        readers = [_Reader(known, offset, limit, skip, "strict"), _Reader("cp1252", offset, limit, skip, "replace")]
    else:
        readers = [_Reader(known, offset, limit, skip, "replace")]
    readers = _fed(readers, head)
    async for piece in pieces:
        readers = _fed(readers, piece)
        if readers[0].full:
            return readers[0].passage()
    return _fed(readers, b"", final=True)[0].passage()


def _fed(readers: list[_Reader], data: bytes, *, final: bool = False) -> list[_Reader]:
    """Those of the readers that can read on."""
    able = []
    for reader in readers:
        try:
            reader.feed(data, final=final)
        except UnicodeDecodeError:
            continue
        able.append(reader)
    return able


class _Reader:
    def __init__(self, encoding: str, offset: int, limit: int, skip: int, errors: str) -> None:
        self.encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._first = offset
        self._end = offset + limit
        self._skip = skip
        self._line = 1
        self._column = 0
        self._text: list[str] = []
        self._characters = 0
        self._bytes = 0
        self._cut = False
        self.full = False

    def feed(self, data: bytes, *, final: bool) -> None:
        """Takes bytes. Raises UnicodeDecodeError."""
        text = self._decoder.decode(data, final)
        start = 0
        while start < len(text) and not self.full:
            end = text.find("\n", start) + 1
            self._take(text[start:end] if end else text[start:])
            if self.full or not end:
                return
            self._line, self._column, start = self._line + 1, 0, end

    def passage(self) -> Passage:
        text = "".join(self._text)
        last = self._line if self._cut or self._column else self._line - 1
        name = "utf-8" if self.encoding == "utf-8-sig" else self.encoding
        return Passage(text, name, last, self._column if self._cut else None, self.full, max(last, 0))

    def _take(self, part: str) -> None:
        """A line, or a part of one."""
        if self._line >= self._end:
            self.full = True
            return
        column = self._column
        self._column += len(part)
        if self._line < self._first:
            return
        if self._line == self._first and column < self._skip:
            part = part[self._skip - column :]
        room = MOST_CHARACTERS - self._characters
        shown = part[:room]
        data = shown.encode(errors="replace")
        if self._bytes + len(data) > _MOST_BYTES:
            shown = data[: _MOST_BYTES - self._bytes].decode(errors="ignore")
        self._text.append(shown)
        self._characters += len(shown)
        self._bytes += len(shown.encode(errors="replace"))
        if len(shown) < len(part):
            self._column -= len(part) - len(shown)
            self._cut = self.full = True
