"""`longhaul doctor`: what a worker with these settings would have, whether it could start, and what to do if not.

It looks at the environment as a worker would, or at the stack that runs here; it loads plug-ins as a worker does, and
changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.dev import DataDir

if TYPE_CHECKING:
    from cli.diagnosis import Diagnosis

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of a report for people.")]


def doctor(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show what is loaded, what can be reached and what is wrong. Exit code 1: there is a problem."""
    found = asyncio.run(_diagnosed(data_dir))
    if as_json:
        typer.echo(json.dumps(found.shown(), indent=2))
    else:
        _report(found)
    if found.problems:
        raise typer.Exit(1)


async def _diagnosed(data_dir: Path | None) -> Diagnosis:
    from cli.diagnosis import diagnose

    return await diagnose(data_dir)


def _report(found: Diagnosis) -> None:
    from rich.text import Text

    from cli.console import harmless, results

    console = results()
    for title, lines in found.sections.items():
        console.print(Text(title, style="bold"))
        for line in lines or ["none"]:
            console.print(f"  {harmless(line)}")
    console.print(Text("problems", style="bold red" if found.problems else "bold"))
    for problem in found.problems:
        console.print(f"  {harmless(problem.what)}")
        for remedy in problem.remedies:
            console.print(f"    · {harmless(remedy)}")
    if not found.problems:
        console.print("  none")
