"""Plain text: paragraphs are what blank lines part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from memory.documents.blocks import Block, Parsed
from memory.documents.encodings import decoded

_GAP: Final = re.compile(r"\n[^\S\n]*\n\s*")
_ITEM: Final = re.compile(r"\s{0,8}(?:[-*•·–]|\d{1,3}[.)、])\s+\S")


def read_text(data: bytes, charset: str | None) -> Parsed:
    """Raises DocumentRefused: not text."""
    text, encoding = decoded(data, charset)
    return Parsed(list(text_blocks(text)), {"encoding": encoding})


def text_blocks(text: str, page: int | None = None) -> Iterator[Block]:
    """Paragraphs, and lists where each line of one looks like an item."""
    for part in _GAP.split(text.strip()):
        if not part.strip():
            continue
        lines = part.split("\n")
        if len(lines) > 1 and all(_ITEM.match(line) or line[:1] == " " for line in lines) and _ITEM.match(lines[0]):
            yield Block("list", lines=_items(lines), page=page)
        else:
            yield Block("text", "\n".join(line.rstrip() for line in lines), page=page)


def _items(lines: list[str]) -> list[str]:
    items: list[str] = []
    for line in lines:
        if items and not _ITEM.match(line):
            items[-1] = f"{items[-1]}\n{line.rstrip()}"
        else:
            items.append(line.rstrip())
    return items
