"""DOCX: headings, paragraphs, lists and tables of the body, then its notes.

The archive is looked over before anything is unpacked: what claims to become enormous is refused. Text that was
deleted under change tracking is not there; text that was inserted is.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from memory.documents.blocks import Block, Parsed
from memory.documents.refusals import DocumentRefused

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_MOST_ENTRIES: Final = 5_000
_MOST_BYTES: Final = 200 * 1_048_576
_MOST_XML: Final = 64 * 1_048_576
_BOMB_RATIO: Final = 200
_HEADING: Final = re.compile(r"heading (\d)", re.I)
_DEEPEST: Final = 60


def read_docx(data: bytes) -> Parsed:
    """Raises DocumentRefused: no DOCX, encrypted, or an archive that is made to do harm."""
    _check_archive(data)
    import docx

    try:
        document = docx.Document(io.BytesIO(data))
        body = document.element.body
        styles = {style.style_id: (style.name or "") for style in document.styles}
        blocks = list(_Body(styles).blocks(body, 0))
        blocks += _notes(document.part)
        title = (document.core_properties.title or "").strip()
    except (DocumentRefused, MemoryError):
        raise
    except Exception as error:  # which one a damaged file ends in depends on where it is damaged
        raise DocumentRefused(
            "malformed", f"The document can't be read as DOCX: {type(error).__name__}: {str(error)[:200]}."
        ) from None
    return Parsed(blocks, {"title": title[:300]} if title else {})


def _check_archive(data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if len(entries) > _MOST_ENTRIES:
                raise _bomb(f"it has {len(entries)} entries")
            total = sum(entry.file_size for entry in entries)
            if total > _MOST_BYTES:
                raise _bomb(f"unpacked it would have {total} bytes")
            for entry in entries:
                xml = entry.filename.lower().endswith((".xml", ".rels"))
                if xml and entry.file_size > _MOST_XML:
                    raise _bomb(f"{entry.filename[:100]!r} unpacked would have {entry.file_size} bytes")
                if entry.file_size > 1_048_576 and entry.file_size > _BOMB_RATIO * max(1, entry.compress_size):
                    times = entry.file_size // max(1, entry.compress_size)
                    raise _bomb(f"{entry.filename[:100]!r} is packed {times} to 1")
                if entry.flag_bits & 1:
                    raise DocumentRefused(
                        "encrypted", "The document is encrypted.", suggestions=("save it without a password",)
                    )
    except zipfile.BadZipFile as error:
        raise DocumentRefused("malformed", f"The document is a damaged DOCX: {error}.") from None
    if "[Content_Types].xml" not in names or "word/document.xml" not in names:
        kind = next(
            (what for folder, what in (("xl/", "a spreadsheet"), ("ppt/", "a presentation")) if _any(names, folder)),
            "another kind of archive",
        )
        raise DocumentRefused(
            "unsupported_type",
            f"The document is {kind}, not a DOCX.",
            suggestions=("use text, Markdown, HTML, PDF, DOCX or CSV",),
        )


def _any(names: set[str], folder: str) -> bool:
    return any(name.startswith(folder) for name in names)


def _bomb(what: str) -> DocumentRefused:
    return DocumentRefused("bomb", f"The document is not unpacked, because {what}.")


class _Body:
    """What stands in a body or a cell, in order. Items of a list that follow each other are one block."""

    def __init__(self, styles: dict[str, str]) -> None:
        self._styles = styles
        self._items: list[str] = []

    def blocks(self, body: Any, depth: int) -> Iterator[Block]:
        for child in body:
            if child.tag == f"{_W}p":
                yield from self._paragraph(child)
            elif child.tag == f"{_W}tbl":
                yield from self._end_list()
                yield from _table(child)
            elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml") and depth < _DEEPEST:
                yield from self.blocks(child, depth + 1)
        if depth == 0:
            yield from self._end_list()

    def _paragraph(self, paragraph: Any) -> Iterator[Block]:
        text = _text(paragraph).strip()
        if not text:
            return
        style = paragraph.find(f"{_W}pPr/{_W}pStyle")
        name = self._styles.get(style.get(f"{_W}val") or "", "") if style is not None else ""
        level = _level(paragraph, name)
        if level:
            yield from self._end_list()
            yield Block("heading", " ".join(text.split()), level=level)
        elif paragraph.find(f"{_W}pPr/{_W}numPr") is not None or name.lower().startswith("list"):
            depth = paragraph.find(f"{_W}pPr/{_W}numPr/{_W}ilvl")
            shown = depth.get(f"{_W}val") or "0" if depth is not None else "0"
            indent = int(shown) if shown.isdecimal() and len(shown) == 1 else 0
            self._items.append(f"{'  ' * indent}- {text}")
        else:
            yield from self._end_list()
            yield Block("text", text)

    def _end_list(self) -> Iterator[Block]:
        if self._items:
            yield Block("list", lines=self._items)
            self._items = []


def _level(paragraph: Any, style: str) -> int:
    """A heading's, below the title's, which is 1; 0 for what is no heading."""
    if style.lower() == "title":
        return 1
    if found := _HEADING.fullmatch(style):
        return int(found[1]) + 1
    outline = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
    shown = (outline.get(f"{_W}val") or "") if outline is not None else ""
    return int(shown) + 2 if shown.isdecimal() and len(shown) == 1 and int(shown) < 9 else 0


def _table(table: Any) -> Iterator[Block]:
    rows: list[list[str]] = []
    headed = False
    for row in table.iterchildren(f"{_W}tr"):
        cells = [" ".join(_text(cell, paragraphs=" ").split()) for cell in row.iterchildren(f"{_W}tc")]
        headed = headed or (not rows and row.find(f"{_W}trPr/{_W}tblHeader") is not None)
        rows.append(cells)
    if not rows:
        return
    if len(rows) == 1 or max(map(len, rows)) < 2:  # a frame around text
        for cells in rows:
            if text := "\n".join(cell for cell in cells if cell):
                yield Block("text", text)
        return
    # Most tables begin with the names of their columns, though few say so.
    headed = headed or all(cell and not cell.replace(".", "").replace(",", "").isdigit() for cell in rows[0])
    lines = [" | ".join(cells) for cells in rows]
    kept = [line for line in lines[1 if headed else 0 :] if line.strip(" |")]
    yield Block("table", header=lines[0] if headed else None, lines=kept)


def _notes(part: Any) -> list[Block]:
    from lxml import etree

    found: list[Block] = []
    for relation in part.rels.values():
        if relation.is_external or not relation.reltype.endswith(("/footnotes", "/endnotes")):
            continue
        root = etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False, no_network=True))
        notes = [" ".join(_text(note, paragraphs=" ").split()) for note in root]
        lines = [f"- {note}" for note in notes if note]
        if lines:
            kind = "Footnotes" if relation.reltype.endswith("/footnotes") else "Endnotes"
            found += [Block("heading", kind, level=1), Block("list", lines=lines)]
    return found


def _text(element: Any, *, paragraphs: str = "") -> str:
    parts: list[str] = []
    skipped: Any = None
    for node in element.iter():
        if skipped is not None:
            if skipped in node.iterancestors():
                continue
            skipped = None
        if node.tag == _FALLBACK:  # what programs of old show instead of what was just read
            skipped = node
        elif node.tag == f"{_W}t":
            parts.append(node.text or "")
        elif node.tag == f"{_W}tab":
            parts.append("\t")
        elif node.tag in (f"{_W}br", f"{_W}cr"):
            parts.append("\n")
        elif node.tag == f"{_W}noBreakHyphen":
            parts.append("-")
        elif node.tag == f"{_W}p" and paragraphs:
            parts.append(paragraphs)
    return "".join(parts)
