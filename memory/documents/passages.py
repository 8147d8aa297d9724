"""Passages: a document's blocks, cut to what one memory holds, along the document's own structure.

A passage never crosses a heading; paragraphs are cut between sentences, lists between items, tables between rows, each
piece under the table's header, and code between lines, where it is too long to stay whole. Where several places would
do for a cut, the text at the place decides, not how much came before: so after an insertion cuts fall where they fell,
and all passages further on stay as they were.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from memory.documents.blocks import Block

LEAST: Final = 600
"""Weight (`weight`) from which a passage may end where another paragraph could follow."""

ENOUGH: Final = 1_100
"""Weight at which it ends there."""

MOST: Final = 1_500
"""Weight that it never exceeds, but for code."""

MOST_CODE: Final = 4_000
"""Weight of code that stays whole."""

MAX_CONTEXT: Final = 600

_SENTENCE: Final = re.compile(
    r"""[^\n]+?(?:[。！？!?…]+[”’」』）)\]"']*|[.;][”’)\]"']*(?=\s)|；|(?=\n)|$)[^\S\n]*\n?|\n"""
)
_WIDE: Final = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uff60]")
_SAYS: Final = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Passage:
    """`context` are the headings that it stands below, outermost first; `page` is where it begins."""

    text: str
    context: str | None
    page: int | None


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is not cut any more."""

    text: str
    page: int | None
    joint: str = "\n\n"


def weight(text: str) -> int:
    """Its length, where a Chinese, Japanese or Korean character counts as two: it says as much, and costs models so."""
    return len(text) + len(_WIDE.findall(text))


def passages_of(blocks: Iterable[Block]) -> Iterator[Passage]:
    """The passages in order. Of equal ones, such as repeated legal notes, only the first."""
    seen: set[str] = set()
    for passage in _passages(blocks):
        if passage.text not in seen and _SAYS.search(passage.text):
            seen.add(passage.text)
            yield passage


def _passages(blocks: Iterable[Block]) -> Iterator[Passage]:
    headings: list[tuple[int, str]] = []
    units: list[_Unit] = []
    lone: Block | None = None  # a heading below which nothing has come yet
    for block in blocks:
        if block.kind != "heading":
            found = list(_units(block))
            units += found
            lone = None if found else lone
            continue
        yield from _pack(units, _context(headings))
        units = []
        if lone is not None and lone.level >= block.level:
            yield Passage(lone.text[:MOST], _context(headings[:-1]), lone.page)
        while headings and headings[-1][0] >= block.level:
            headings.pop()
        headings.append((block.level, " ".join(block.text.split())[:200]))
        lone = block
    yield from _pack(units, _context(headings))
    if lone is not None:
        yield Passage(lone.text[:MOST], _context(headings[:-1]), lone.page)


def _context(headings: Sequence[tuple[int, str]]) -> str | None:
    return " > ".join(text for _, text in headings)[-MAX_CONTEXT:] or None


def _units(block: Block) -> Iterator[_Unit]:
    match block.kind:
        case "text" if weight(block.text) > MOST:
            pieces = _sentences(block.text)
            for text in _grouped(pieces, "", MOST):
                yield _Unit(text.strip(), block.page, " ")
        case "code" if weight(block.text) > MOST_CODE:
            for text in _grouped(_short(block.text.split("\n"), MOST), "\n", MOST):
                yield _Unit(text, block.page, "\n")
        case "list" | "table":
            head = [block.header] if block.header and weight(block.header) < MOST // 2 else []
            room = MOST - weight("\n".join(head)) - len(head)
            for text in _grouped(_short(block.lines, room), "\n", room):
                yield _Unit("\n".join([*head, text]), block.page)
            if head and not block.lines:
                yield _Unit(head[0], block.page)
        case _:
            if block.text.strip():
                yield _Unit(block.text, block.page)


def _sentences(text: str) -> Iterator[str]:
    for found in _SENTENCE.finditer(text):
        yield from _short([found.group()], MOST)


def _short(lines: Iterable[str], most: int) -> Iterator[str]:
    """Lines that are too long in pieces, between words where there are any."""
    for line in lines:
        if len(line) * 2 <= most or weight(line) <= most:
            yield from [line] if line else []
            continue
        start = 0
        while start < len(line):
            end = start + (most if weight(line[start : start + most]) <= most else most // 2)
            if end < len(line) and (space := line.rfind(" ", start + (end - start) // 2, end)) > 0:
                end = space + 1
            yield line[start:end]
            start = end


def _grouped(pieces: Iterable[str], joint: str, most: int) -> Iterator[str]:
    group: list[str] = []
    size = 0
    for piece in pieces:
        added = weight(piece) + len(joint)
        if group and size + added > most:
            yield joint.join(group)
            group, size = [], 0
        group.append(piece)
        size += added
        if _may_end(size, piece):
            yield joint.join(group)
            group, size = [], 0
    if group:
        yield joint.join(group)


def _pack(units: Sequence[_Unit], context: str | None) -> Iterator[Passage]:
    group: list[_Unit] = []
    size = 0
    for unit in units:
        added = weight(unit.text) + len(unit.joint)
        if group and size + added > MOST:
            yield _passage(group, context)
            group, size = [], 0
        group.append(unit)
        size += added
        if _may_end(size, unit.text):
            yield _passage(group, context)
            group, size = [], 0
    if group:
        yield _passage(group, context)


def _may_end(size: int, last: str) -> bool:
    return size >= ENOUGH or (size >= LEAST and zlib.crc32(last.encode("utf-8", "replace")) % 3 == 0)


def _passage(group: Sequence[_Unit], context: str | None) -> Passage:
    text = group[0].text
    for unit in group[1:]:
        text += unit.joint + unit.text
    return Passage(text.strip("\n"), context, group[0].page)
