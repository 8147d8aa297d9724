"""How good a list of memories is as an answer, and the table that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.stats import latency


@dataclass(slots=True)
class Figure:
    """One way of searching, over all questions of a corpus. Shares are in [0, 1], times in ms."""

    name: str
    reference: bool = False
    at1: list[float] = field(default_factory=list)
    at5: list[float] = field(default_factory=list)
    at10: list[float] = field(default_factory=list)
    reciprocal: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    def add(self, found: Sequence[int], answers: frozenset[int], took: float | None) -> None:
        """What a search found of a question's answers, the best first."""
        for most, shares in ((1, self.at1), (5, self.at5), (10, self.at10)):
            shares.append(len(answers.intersection(found[:most])) / len(answers))
        ranks = [rank for rank, place in enumerate(found[:10], start=1) if place in answers]
        self.reciprocal.append(1 / ranks[0] if ranks else 0.0)
        if took is not None:
            self.took.append(took)

    def numbers(self) -> dict[str, float | None]:
        """recall@1, @5, @10, MRR (of the first ten), and the times."""
        times = latency(self.took) if self.took else None
        return {
            "recall@1": _mean(self.at1),
            "recall@5": _mean(self.at5),
            "recall@10": _mean(self.at10),
            "MRR": _mean(self.reciprocal),
            "p50 ms": times.median if times else None,
            "p95 ms": times.edge if times else None,
        }


@dataclass(slots=True)
class Group:
    """All figures of one corpus."""

    title: str
    figures: list[Figure]

    def plain(self) -> dict[str, Any]:
        return {"title": self.title, "figures": [{"name": each.name, **each.numbers()} for each in self.figures]}


def show(groups: Sequence[Group]) -> None:
    """Prints the table."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=132)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in Figure("").numbers():
        table.add_column(name, justify="right", no_wrap=True, header_style="dim")
    for group in groups:
        table.add_row()
        table.add_row(Text(group.title, style="bold"))
        for each in group.figures:
            cells = [f"  {each.name}", *(_cell(name, value) for name, value in each.numbers().items())]
            table.add_row(*(Text(cell, style="dim" if each.reference else "") for cell in cells))
    console.print(table)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name.endswith("ms") else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
