"""What was measured, as a table for people and as JSON for comparing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.stats import Spread

Unit = Literal["ms", "s", "KB", "MB", "/s", "×", "%", ""]
Verdict = Literal["holds", "misses"]


@dataclass(frozen=True, slots=True)
class Bound:
    """What must hold: at most `median` and `edge`, or, of a rate, at least. None binds nothing."""

    median: float
    edge: float | None = None
    at_least: bool = False

    def verdict(self, value: Spread) -> Verdict:
        pairs = [(value.median, self.median)] + ([(value.edge, self.edge)] if self.edge is not None else [])
        held = all(got >= limit if self.at_least else got <= limit for got, limit in pairs)
        return "holds" if held else "misses"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, or, without a bound, what it is to be seen beside. `single`: measured once, there is no p95."""

    label: str
    unit: Unit
    value: Spread
    must: Bound | None = None
    single: bool = False

    @property
    def verdict(self) -> Verdict | None:
        return None if self.must is None else self.must.verdict(self.value)


@dataclass(frozen=True, slots=True)
class Section:
    """A group of lines. `key` names it on the command line; `failure` says why there is nothing more."""

    key: str
    title: str
    lines: Sequence[Line] = ()
    notes: Sequence[str] = ()
    failure: str | None = None


@dataclass(slots=True)
class Report:
    """All of one run. `machine` and `calibration` tell whether two reports can be compared."""

    machine: Mapping[str, Any]
    calibration: list[Line] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(section.failure for section in self.sections)

    def write_json(self, path: Path) -> None:
        """Writes all of it to `path`."""
        document = {
            "machine": self.machine,
            "calibration": [_plain(line) for line in self.calibration],
            "rows": [
                {
                    "key": section.key,
                    "title": section.title,
                    "lines": [_plain(line) for line in section.lines],
                    "notes": list(section.notes),
                    "failure": section.failure,
                }
                for section in self.sections
            ],
        }
        path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def show(self) -> None:
        """Prints the table; without colours or cut lines where standard output is no terminal."""
        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console = Console(highlight=False, markup=False, emoji=False, width=132)
        for name, value in self.machine.items():
            console.print(Text(f"{name + ':':<10} ", style="dim").append(str(value), style="not dim"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        for title in ("median", "p95/worst", "must hold", ""):
            table.add_column(title, justify="right", no_wrap=True, header_style="dim")
        if self.calibration:
            _add(table, Section("", "This machine, for comparing", self.calibration))
        for section in self.sections:
            _add(table, section)
        console.print(table)


def _add(table: Table, section: Section) -> None:
    table.add_row()
    table.add_row(Text(section.title, style="bold"))
    for line in section.lines:
        style = "" if line.must is not None else "dim"
        edge = "" if line.single else _amount(line.value.edge, line.unit)
        cells = (f"  {line.label}", _amount(line.value.median, line.unit), edge, _must(line))
        verdict = line.verdict
        mark = Text(verdict or "", style="green" if verdict == "holds" else "bold red")
        table.add_row(*(Text(cell, style=style) for cell in cells), mark)
    for note in section.notes:
        table.add_row(Text(f"  {note}", style="dim italic"))
    if section.failure is not None:
        table.add_row(Text(f"  not measured: {section.failure.splitlines()[0]}", style="bold red"))


def _must(line: Line) -> str:
    must = line.must
    if must is None:
        return ""
    limits = [must.median] + ([must.edge] if must.edge is not None else [])
    return f"{'≥' if must.at_least else '≤'} {' / '.join(f'{limit:,g}' for limit in limits)} {line.unit}"


def _amount(value: float, unit: Unit) -> str:
    text = f"{value:,.0f}" if unit == "/s" else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{text} {unit}".rstrip()


def _plain(line: Line) -> dict[str, Any]:
    must = line.must
    return {
        "label": line.label,
        "unit": line.unit,
        "median": round(line.value.median, 3),
        "p95_or_worst": None if line.single else round(line.value.edge, 3),
        "must": None if must is None else {"median": must.median, "edge": must.edge, "at_least": must.at_least},
        "verdict": line.verdict,
    }
