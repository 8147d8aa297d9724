"""One chaos from beginning to end: open the house, run the lanes, inject the faults, heal, wait, judge."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.callers import Lanes
from tests.chaos.faults import draw
from tests.chaos.house import house
from tests.chaos.injector import Injector
from tests.chaos.report import Report, say
from tests.chaos.verdict import Verdict

_SETTLING = 180.0
"""Seconds beyond two times the longest run, after the last fault, within which every run must have ended."""


@dataclass(frozen=True, slots=True)
class Options:
    """`run_seconds` is how long the longest run takes when nothing goes wrong. `lease` is in seconds, too."""

    seed: int
    minutes: float
    faults: int
    runs: int
    apis: int
    workers: int
    run_seconds: float
    lease: float


async def chaos(options: Options, folder: Path) -> list[str]:
    """What was found that must not be; each is also said when it is found."""
    findings: list[str] = []

    def finding(text: str) -> None:
        findings.append(text)
        say(f"FOUND: {text}")

    faults = draw(options.seed, options.faults, options.minutes * 60, lease=options.lease)
    async with house(folder, finding, lease=options.lease) as home:
        # With one worker gone the others still have a slot for every run.
        home.open(apis=options.apis, workers=options.workers, slots=-(-options.runs * 3 // (2 * options.workers)))
        await home.ready()
        verdict = Verdict(home.stack.database, home.outside)
        lanes = Lanes(home, verdict, random.Random(f"plans {options.seed}"), seconds=options.run_seconds)
        injector = Injector(home, lanes)
        report = Report(home, lanes, injector, verdict, faults=len(faults))
        telling = asyncio.create_task(report.keep_telling())
        running = asyncio.create_task(lanes.run(options.runs))
        injecting = asyncio.create_task(injector.run(faults))
        await asyncio.wait([running, injecting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():  # it broke: lanes are not closed yet
            injecting.cancel()
            running.result()
        injecting.result()
        say(f"all faults are over; {len(lanes.at_work)} runs are at work and must end")
        lanes.close()
        patience = _SETTLING + 2 * options.run_seconds
        await asyncio.wait([running], timeout=patience)
        for course in lanes.at_work:
            course.finding(f"it has not ended {patience:g} s after the last fault")
        if running.done():
            running.result()
        running.cancel()
        telling.cancel()
        await asyncio.wait([running, telling])
        await home.close()
        for text in await verdict.on_all():
            finding(text)
        report.summary()
    return findings
