"""CSV and TSV: each row with the names of its columns, so that a row says on its own what it means."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from typing import Final

from memory.documents.blocks import Block, Parsed
from memory.documents.encodings import decoded
from memory.documents.refusals import DocumentRefused

_DELIMITERS: Final = (",", ";", "\t", "|")
_LOOKED_AT: Final = 50
_LONGEST_CELL: Final = 100_000
_MOST_COLUMNS: Final = 500


def read_csv(data: bytes, charset: str | None) -> Parsed:
    """Raises DocumentRefused: not text, or no table."""
    text, encoding = decoded(data, charset)
    csv.field_size_limit(_LONGEST_CELL)
    lines = text.split("\n")
    rows: list[list[str]] = []
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=_delimiter(lines))
    try:
        rows.extend([" ".join(cell.split()) for cell in row] for row in reader if any(map(str.strip, row)))
    except csv.Error as error:
        raise DocumentRefused(
            "malformed",
            f"Line {reader.line_num} can't be read as CSV: {error}.",
            suggestions=("look for a quote that is not closed",),
        ) from None
    if not rows:
        return Parsed([], {"encoding": encoding})
    if max(map(len, rows)) > _MOST_COLUMNS:
        raise DocumentRefused("too_long", f"The table has more than {_MOST_COLUMNS} columns.")
    names = rows.pop(0) if len(rows) > 1 and _is_header(rows[0]) else []
    shown = [_shown(row, names) for row in rows]
    facts = {"encoding": encoding, "rows": len(rows), **({"columns": names} if names else {})}
    return Parsed([Block("table", lines=[line for line in shown if line])], facts)


def _delimiter(lines: Sequence[str]) -> str:
    """The one that parts most lines of the beginning alike."""
    sample = [line for line in islice(lines, _LOOKED_AT) if line.strip()]

    def alike(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return (0.0, 0)
        usual = max(set(widths), key=widths.count, default=1)
        return (widths.count(usual) / len(widths) if usual > 1 else 0.0, usual)

    return max(_DELIMITERS, key=alike)


def _is_header(row: Sequence[str]) -> bool:
    """Names are there, are short, differ, and are no numbers."""
    named = [cell for cell in row if cell]
    return (
        len(named) >= max(1, len(row) - 1)
        and len({cell.lower() for cell in named}) == len(named)
        and all(len(cell) <= 100 and not _is_number(cell) for cell in named)
    )


def _is_number(cell: str) -> bool:
    return cell.strip("+-$€£¥% ").replace(",", "").replace(".", "").replace(":", "").replace("-", "").isdigit()


def _shown(row: Sequence[str], names: Sequence[str]) -> str:
    if not names:
        return " | ".join(row).strip(" |")
    parts = []
    for place, cell in enumerate(row):
        name = names[place] if place < len(names) else ""
        if cell:
            parts.append(f"{name}: {cell}" if name else cell)
    return "; ".join(parts)
