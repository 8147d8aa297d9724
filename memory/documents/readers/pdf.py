"""PDF, page by page: lines become paragraphs again, lines in larger type headings, and what stands at the top or bottom
of most pages is left out. Only the text layer is read: a scan has none, and is refused."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from memory.documents.blocks import Block, Parsed
from memory.documents.refusals import DocumentRefused

if TYPE_CHECKING:
    from pypdf import PdfReader

_MOST_PAGES: Final = 5_000
_LONGEST_HEADING: Final = 150
_LONGEST_MARGIN: Final = 80
_LARGER: Final = 1.12
_DIGITS: Final = re.compile(r"\d+")
_CJK: Final = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
_ENDS: Final = re.compile(r"[.!?:。！？：；…][\"')\]”’」』）]*$")
_ITEM: Final = re.compile(r"(?:[-*•·▪◦–]|\(?\d{1,3}[.)、]|[a-z][.)])\s+\S")


@dataclass(slots=True)
class _Line:
    """A line of a page. `size` is that of its type, `gap`: an empty line is before it."""

    text: str
    size: float
    gap: bool = False


def read_pdf(data: bytes) -> Parsed:
    """Raises DocumentRefused: encrypted, damaged, too long, or without text."""
    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        _open(reader)
        count = len(reader.pages)
        if count > _MOST_PAGES:
            raise DocumentRefused(
                "too_long", f"The PDF has {count} pages; at most {_MOST_PAGES} are read.", suggestions=("split it",)
            )
        pages = [_lines(page) for page in reader.pages]
        title = str(reader.metadata.title or "").strip() if reader.metadata else ""
    except (DocumentRefused, MemoryError):
        raise
    except Exception as error:  # which one a damaged file ends in depends on where it is damaged
        raise DocumentRefused(
            "malformed", f"The document can't be read as PDF: {type(error).__name__}: {str(error)[:200]}."
        ) from None
    empty = sum(not lines for lines in pages)
    if count == 0 or empty == count:
        raise DocumentRefused(
            "no_text",
            f"The PDF has no text on its {count} pages: it may be a scan.",
            suggestions=("run text recognition (OCR) over it, and upload the result",),
        )
    _leave_out_margins(pages)
    facts: dict[str, Any] = {"pages": count, **({"title": title[:300]} if title and "\x00" not in title else {})}
    if empty:
        facts["pages_without_text"] = empty
    return Parsed(list(_blocks(pages)), facts)


def _open(reader: PdfReader) -> None:
    """Many PDFs are encrypted only to forbid printing, and open without a password."""
    if not reader.is_encrypted:
        return
    try:
        opened = bool(reader.decrypt(""))
    except Exception:
        opened = False
    if not opened:
        raise DocumentRefused(
            "encrypted", "The PDF is encrypted: it opens with a password only.", suggestions=("save it without one",)
        )


def _lines(page: Any) -> list[_Line]:
    lines: list[_Line] = []
    words: list[str] = []
    size = 0.0
    gap = False

    def end() -> None:
        nonlocal size, gap
        text = " ".join("".join(words).replace("\x00", "").split())
        words.clear()
        if text:
            lines.append(_Line(text, round(size, 1), gap))
            gap = False
        else:
            gap = True
        size = 0.0

    def visit(text: str, _cm: list[float], tm: list[float], _font: Any, font_size: float) -> None:
        nonlocal size
        first = True
        for part in text.split("\n"):
            if not first:
                end()
            first = False
            if part.strip():
                scale = abs(tm[0] * tm[3] - tm[1] * tm[2]) ** 0.5 if len(tm) >= 4 else 1.0
                size = max(size, abs(float(font_size)) * (scale or 1.0))
            words.append(part)

    page.extract_text(visitor_text=visit)
    end()
    return lines


def _leave_out_margins(pages: Sequence[list[_Line]]) -> None:
    """Running heads, feet and page numbers: first and last lines that most pages share, but for their numbers."""
    filled = [lines for lines in pages if lines]
    if len(filled) < 4:
        return
    for place in (0, -1):
        seen = Counter(_DIGITS.sub("#", lines[place].text) for lines in filled)
        for _ in range(2):
            usual, times = seen.most_common(1)[0]
            if times * 2 <= len(filled) or len(usual) > _LONGEST_MARGIN:
                break
            for lines in pages:
                if len(lines) > 1 and _DIGITS.sub("#", lines[place].text) == usual:
                    del lines[place]
            filled = [lines for lines in pages if lines]
            seen = Counter(_DIGITS.sub("#", lines[place].text) for lines in filled)


def _blocks(pages: Sequence[list[_Line]]) -> Iterator[Block]:
    weights: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            weights[line.size] += len(line.text)
    body = weights.most_common(1)[0][0]
    sizes = sorted((size for size in weights if body > 0 and size >= body * _LARGER), reverse=True)
    levels = {size: min(place, 5) + 1 for place, size in enumerate(sizes)}
    for number, lines in enumerate(pages, start=1):
        longest = max((len(line.text) for line in lines), default=0)
        paragraph: list[_Line] = []
        for line in lines:
            level = levels.get(line.size, 0) if len(line.text) <= _LONGEST_HEADING else 0
            if paragraph and (level or _begins(paragraph[-1], line, longest)):
                yield _joined(paragraph, number)
                paragraph = []
            if level:
                yield Block("heading", line.text, level=level, page=number)
            else:
                paragraph.append(line)
        if paragraph:
            yield _joined(paragraph, number)


def _begins(before: _Line, line: _Line, longest: int) -> bool:
    """Whether a line begins a paragraph: after an empty line, an item, or after a last line, which ends early."""
    if line.gap or _ITEM.match(line.text):
        return True
    return bool(_ENDS.search(before.text)) and len(before.text) < 0.8 * longest


def _joined(lines: Sequence[_Line], page: int) -> Block:
    text = ""
    for line in lines:
        if not text:
            text = line.text
        elif text.endswith("-") and text[-2:-1].isalpha() and line.text[:1].islower():
            text = text[:-1] + line.text  # a word that was parted
        elif _CJK.match(text[-1]) and _CJK.match(line.text):
            text += line.text
        else:
            text += " " + line.text
    return Block("text", text, page=page)
