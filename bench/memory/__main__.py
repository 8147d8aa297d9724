"""`python -m bench.memory`: measure recall on this machine and print the tables.

Exit code 0 whatever the figures are; 1 if something did not run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson
import structlog
import uvloop

from bench import machine
from bench.memory import figures, million, quality, scale
from bench.memory.conversations import conversations
from bench.memory.documents import documents
from bench.memory.embedder import SyntheticEmbedder
from bench.memory.figures import Group
from bench.memory.stage import servers, stage
from bench.processes import ProcessorTime
from bench.report import Report
from bench.subject import clean_environment
from cli.console import complain, say
from cli.embedded import EmbeddedServers
from cli.signals import Stopped, stop_event, unless_stopped
from kernel.errors import LonghaulError
from memory.embedders.lexical import LexicalEmbedder

_SEED: Final = 1
_LANGUAGES: Final = ("en", "zh")
_ROWS: Final = (quality.KEY, scale.KEY)


async def _measure(options: argparse.Namespace, directory: Path, report: Report) -> list[Group]:
    groups: list[Group] = []
    settings: Mapping[str, str] = million.OPTIONS if options.million else {}
    async with servers(directory / "stores", settings) as running:
        load = ProcessorTime({"postgres": running.postgres.pid or 0})
        if options.million:
            async with stage(running, "million") as place:
                report.sections += await million.measure(place, rows=options.rows or million.ROWS, orgs=options.orgs)
        else:
            if quality.KEY in options.only:
                groups = await _quality(running, report, options.questions)
            if scale.KEY in options.only:
                async with stage(running, "scale") as place:
                    report.sections += await scale.measure(place, rows=options.rows or scale.ROWS)
        if report.sections:
            last = report.sections[-1]
            report.sections[-1] = type(last)(last.key, last.title, last.lines, [*last.notes, *load.notes()])
    return groups


async def _quality(running: EmbeddedServers, report: Report, questions: int) -> list[Group]:
    corpora = [
        kind(language, seed=_SEED, questions=questions)
        for kind in (conversations, documents)
        for language in _LANGUAGES
    ]
    async with stage(running, "synthetic") as one, stage(running, "lexical") as other:
        groups, section = await quality.measure(corpora, (one, SyntheticEmbedder()), (other, LexicalEmbedder()))
    report.sections.append(section)
    return groups


async def _bench(options: argparse.Namespace, directory: Path) -> int:
    report = Report(machine.describe(directory))
    groups: list[Group] = []

    async def run() -> None:
        groups.extend(await _measure(options, directory, report))

    try:
        with stop_event() as stop:
            await unless_stopped(run(), stop)
    except Stopped:
        return 130
    except LonghaulError as error:
        complain(error)
        return 1
    if groups:
        figures.show(groups)
    report.show()
    if options.json is not None:
        report.write_json(options.json)
        written = orjson.loads(await asyncio.to_thread(options.json.read_bytes))
        written["quality"] = [group.plain() for group in groups]
        await asyncio.to_thread(options.json.write_bytes, orjson.dumps(written, option=orjson.OPT_INDENT_2))
    return 0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Measures memory on this machine.")
    parser.add_argument("--million", action="store_true", help="a million memories of a thousand orgs, alone")
    parser.add_argument("--only", action="append", choices=_ROWS, help="measure only this")
    parser.add_argument("--rows", type=int, help="memories of the row about scale, or of the million")
    parser.add_argument("--orgs", type=int, default=million.ORGS, help="orgs of the million")
    parser.add_argument("--questions", type=int, default=420, help="for each corpus; fewer have smaller corpora")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    options = parser.parse_args()
    options.only = options.only or _ROWS
    clean = clean_environment()
    for name in set(os.environ) - set(clean):
        del os.environ[name]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    directory = Path(tempfile.mkdtemp(prefix="longhaul-bench-"))
    directory.chmod(0o711)  # Postgres runs as somebody else where root runs the bench
    try:
        return uvloop.run(_bench(options, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    say("measuring memory")
    sys.exit(main())
