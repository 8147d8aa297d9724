"""HTML, as browsers read it (libxml2): headings, paragraphs, lists, tables and code of what the page is about.

Scripts, styles, forms and what is around the matter (navigation, footers, asides) are left out; where a page marks its
matter (`main`), only that is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from lxml import etree
from lxml import html as lxml_html

from memory.documents.blocks import Block, Parsed
from memory.documents.encodings import decoded
from memory.documents.refusals import DocumentRefused

_LEFT_OUT: Final = frozenset(
    (
        *("aside", "button", "canvas", "datalist", "dialog", "footer", "head", "iframe", "input", "link", "math"),
        *("meta", "nav", "noscript", "object", "option", "script", "select", "style", "svg", "template", "textarea"),
    )
)
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_BLOCKS: Final = frozenset(
    (
        *("address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "form", "header", "hr", "html", "li", "main", "p", "section"),
        *("summary", "tbody", "td", "tfoot", "th", "thead", "tr"),
    )
)
_SPACES: Final = re.compile(r"\s+")
_PROLOGUE: Final = re.compile(r"\s*<\?xml[^>]*\?>")
_SHORT: Final = 200
_DEEPEST: Final = 200


def read_html(data: bytes, charset: str | None) -> Parsed:
    """Raises DocumentRefused: not text, or no HTML."""
    text, encoding = decoded(data, charset, html=True)
    blocks, title = html_blocks(text)
    if title and not any(block.kind == "heading" and block.level == 1 for block in blocks):
        blocks.insert(0, Block("heading", title, level=1))
    return Parsed(blocks, {"encoding": encoding, **({"title": title} if title else {})})


def html_blocks(source: str) -> tuple[list[Block], str]:
    """The blocks and the title, empty if there is none."""
    try:
        root = lxml_html.document_fromstring(_PROLOGUE.sub("", source, count=1))
    except (etree.ParserError, ValueError):
        return [], ""
    except etree.LxmlError as error:
        if getattr(error, "code", None) == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise DocumentRefused("malformed", f"The HTML can't be read: {str(error)[:200]}") from None
    found = root.find(".//title")
    title = _flat(found.text_content())[:300] if found is not None else ""
    for main in root.iter("main"):
        blocks = _Walk().blocks(main)
        if sum(len(block.text) + sum(map(len, block.lines)) for block in blocks) >= _SHORT:
            return blocks, title
    return _Walk().blocks(root), title


class _Walk:
    """One pass over a tree. `_words` are those of the paragraph that is being read."""

    def __init__(self) -> None:
        self._found: list[Block] = []
        self._words: list[str] = []

    def blocks(self, root: Any) -> list[Block]:
        self._element(root, 0)
        self._end()
        return self._found

    def _element(self, element: Any, depth: int) -> None:
        tag = element.tag
        if not isinstance(tag, str) or tag in _LEFT_OUT or "hidden" in element.attrib or depth > _DEEPEST:
            return
        if tag in _HEADINGS:
            self._end()
            if heading := _flat(_text(element)):
                self._found.append(Block("heading", heading, level=_HEADINGS[tag]))
        elif tag == "pre":
            self._end()
            if code := element.text_content().strip("\n").rstrip():
                self._found.append(Block("code", code))
        elif tag in ("ul", "ol"):
            self._end()
            if items := list(_items(element, 0)):
                self._found.append(Block("list", lines=items))
        elif tag == "table":
            self._end()
            self._table(element, depth)
        elif tag == "br":
            self._words.append("\n")
        elif tag == "img":
            self._words.append(element.get("alt") or "")
        else:
            self._inside(element, tag in _BLOCKS, depth)

    def _inside(self, element: Any, block: bool, depth: int) -> None:
        if block:
            self._end()
        self._words.append(_SPACES.sub(" ", element.text or ""))
        for child in element:
            self._element(child, depth + 1)
            self._words.append(_SPACES.sub(" ", child.tail or ""))
        if block:
            self._end()

    def _table(self, table: Any, depth: int) -> None:
        rows = [row for row in table.iter("tr") if next(row.iterancestors("table")) is table]
        cells = [[cell for cell in row if cell.tag in ("td", "th")] for row in rows]
        # Pages are laid out by tables too: then a cell holds more than a value.
        if max(map(len, cells), default=0) < 2 or any(
            next(cell.iter("table", "h1", "h2", "h3", "ul", "ol", "pre"), None) is not None
            for row in cells
            for cell in row
        ):
            self._inside(table, True, depth)
            return
        caption = table.find("caption")
        if caption is not None and (words := _flat(_text(caption))):
            self._found.append(Block("text", words))
        lines = [" | ".join(_flat(_text(cell)) for cell in row) for row in cells]
        headed = (bool(cells[0]) and all(cell.tag == "th" for cell in cells[0])) or bool(table.findall("thead"))
        kept = [line for line in lines[1 if headed else 0 :] if line.strip(" |")]
        self._found.append(Block("table", header=lines[0] if headed else None, lines=kept))

    def _end(self) -> None:
        text = "\n".join(line for line in (_flat(part) for part in "".join(self._words).split("\n")) if line)
        self._words.clear()
        if text:
            self._found.append(Block("text", text))


def _items(element: Any, depth: int) -> Iterator[str]:
    for number, item in enumerate(element.iterchildren("li"), start=1):
        mark = f"{number}." if element.tag == "ol" else "-"
        words = _flat(_text(item, without=("ul", "ol")))
        if words:
            yield f"{'  ' * min(depth, 8)}{mark} {words}"
        if depth < _DEEPEST:
            for child in item.iterdescendants("ul", "ol"):
                if next(child.iterancestors("li")) is item:
                    yield from _items(child, depth + 1)


def _text(element: Any, without: tuple[str, ...] = ()) -> str:
    """The words in an element, without those of what is left out."""
    parts: list[str] = []
    _gather(element, without, parts, 0)
    return "".join(parts)


def _gather(element: Any, without: tuple[str, ...], parts: list[str], depth: int) -> None:
    parts.append(element.text or "")
    for child in element:
        tag = child.tag
        if isinstance(tag, str) and tag not in _LEFT_OUT and tag not in without and depth < _DEEPEST:
            if tag in _BLOCKS or tag == "br":
                parts.append(" ")
            _gather(child, without, parts, depth + 1)
        parts.append(child.tail or "")


def _flat(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
