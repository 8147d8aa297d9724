"""`python -m bench`: measure this machine and print the table.

Exit code 0 whatever the figures are; 1 if something did not run, in which case the rest is shown all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import uvloop

from bench import machine
from bench.http import BenchFailed
from bench.report import Report, Section
from bench.rows import (
    claims,
    fairness,
    first_token,
    idle_streams,
    memory,
    recovery,
    rounds,
    runs,
    sandbox,
    scaling,
    start,
    subscribers,
    tokens,
    tools,
)
from bench.subject import Subject, clean_environment, running_subject
from cli.console import complain, say
from cli.signals import Stopped, stop_event, unless_stopped
from kernel.errors import LonghaulError

_SECONDS = 335.0
_ROW_SECONDS = 75.0
_DESCRIPTORS = 8192

# In the order of the table; measured are the light ones first.
_KEYS = (
    *(first_token.KEY, runs.KEY, tokens.KEY, idle_streams.KEY, subscribers.KEY, memory.KEY, claims.KEY, scaling.KEY),
    *(fairness.KEY, rounds.KEY, tools.KEY, sandbox.KEY, recovery.KEY, start.KEY),
)
_ORDER = (first_token.KEY, first_token.PICKUP_KEY, *_KEYS[1:])


class Bench:
    """One run of the bench, on a directory that it may fill."""

    def __init__(self, directory: Path, only: frozenset[str]) -> None:
        self._directory = directory
        self._only = only
        self._deadline = 0.0
        self.report = Report(machine.describe(directory))

    async def run(self) -> None:
        """Measures all rows. Raises LonghaulError or BenchFailed if there is no stack to measure."""
        self._deadline = asyncio.get_running_loop().time() + _SECONDS
        if start.KEY in self._only:
            await self._row(start.KEY, start.TITLE, lambda: start.measure(self._directory))
        if self._only - {start.KEY}:
            say("starting the stack")
            async with running_subject(self._directory / "stack", say) as subject:
                self.report.calibration = await machine.calibrate(subject)
                await self._rows(subject)
        self.report.sections.sort(key=lambda section: _ORDER.index(section.key))

    async def _rows(self, subject: Subject) -> None:
        weights = memory.MemoryRow()
        if memory.KEY in self._only:
            await self._row(memory.KEY, memory.TITLE, lambda: _none(weights.before(subject)))
        for row in (
            idle_streams,
            first_token,
            runs,
            tokens,
            rounds,
            tools,
            sandbox,
            claims,
            scaling,
            fairness,
            subscribers,
        ):
            if row.KEY in self._only:
                await self._row(row.KEY, row.TITLE, partial(row.measure, subject))
        if memory.KEY in self._only:
            await self._row(memory.KEY, memory.TITLE, lambda: weights.after(subject))
        if recovery.KEY in self._only:  # last: it ends the workers that the others measure
            await self._row(recovery.KEY, recovery.TITLE, lambda: recovery.measure(subject))

    async def _row(self, key: str, title: str, measure: Callable[[], Awaitable[list[Section]]]) -> None:
        say(f"measuring: {title}")
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, min(_ROW_SECONDS, left))):
                self.report.sections += await measure()
        except TimeoutError:
            self._failed(key, title, "it takes too long" if left > _ROW_SECONDS else "the bench's time is up")
        except (BenchFailed, LonghaulError, OSError) as error:
            self._failed(key, title, str(error))
        except ExceptionGroup as group:
            self._failed(key, title, str(group.exceptions[0]))

    def _failed(self, key: str, title: str, why: str) -> None:
        say(f"failed: {title}: {why}")
        self.report.sections.append(Section(key, title, failure=why))


async def _none(work: Awaitable[None]) -> list[Section]:
    await work
    return []


async def _bench(directory: Path, only: frozenset[str], json: Path | None) -> int:
    try:
        bench = Bench(directory, only)
        with stop_event() as stop:
            await unless_stopped(bench.run(), stop)
    except Stopped:
        return 130
    except LonghaulError as error:
        complain(error)
        return 1
    except BenchFailed as error:
        say(f"error: {error}")
        return 1
    bench.report.show()
    if json is not None:
        bench.report.write_json(json)
    return 1 if bench.report.failed else 0


def _prepare_process() -> None:
    """No proxies or tracing within this process either, and descriptors enough for it and its children."""
    clean = clean_environment()
    for name in set(os.environ) - set(clean):
        del os.environ[name]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures this machine, in five minutes at most."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument(
        "--only",
        action="append",
        choices=_KEYS,
        metavar="ROW",
        help=f"measure only this row; one of {', '.join(_KEYS)}",
    )
    options = parser.parse_args()
    _prepare_process()
    directory = Path(tempfile.mkdtemp(prefix="longhaul-bench-"))
    directory.chmod(0o711)  # Postgres runs as somebody else where root runs the bench
    try:
        return uvloop.run(_bench(directory, frozenset(options.only or _KEYS), options.json))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
