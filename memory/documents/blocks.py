"""What a document is made of, whatever its format: headings, paragraphs, lists, tables, code, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BlockKind = Literal["heading", "text", "list", "table", "code"]


@dataclass(frozen=True, slots=True)
class Block:
    """One of them.

    `text` is that of a heading, a paragraph or code. `lines` are the items of a list or the rows of a table, where
    `header` is the row that says what the columns are. `level` is a heading's, from 1. `page` counts from 1.
    """

    kind: BlockKind
    text: str = ""
    lines: Sequence[str] = ()
    header: str | None = None
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document taken apart. `facts` are what is worth knowing of it: pages, encoding, title and the like."""

    blocks: Sequence[Block]
    facts: Mapping[str, Any] = field(default_factory=dict)
