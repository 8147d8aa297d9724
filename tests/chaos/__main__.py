"""`python -m tests.chaos`: chaos for some minutes. Exit code 0 if every promise was kept, 1 if not."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.chaos.report import say
from tests.chaos.trial import Options, chaos


def main() -> None:
    """Reads the command line, runs the chaos, prints what was found. Logs are kept only if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="during which faults happen")
    parser.add_argument("--seed", type=int, default=None, help="draws the faults and the runs (default: by chance)")
    parser.add_argument("--runs", type=int, default=200, help="at work at any time")
    parser.add_argument("--faults", type=int, default=None, help="in all (default: as 1,000 in 30 minutes)")
    parser.add_argument("--run-seconds", type=float, default=40.0, help="how long the longest run takes undisturbed")
    parser.add_argument("--apis", type=int, default=2, help="API processes")
    parser.add_argument("--workers", type=int, default=4, help="worker processes")
    parser.add_argument("--lease", type=float, default=6.0, help="seconds")
    parser.add_argument("--folder", type=Path, default=None, help="for servers and logs (default: a temporary one)")
    given = parser.parse_args()
    options = Options(
        seed=random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed,
        minutes=given.minutes,
        faults=max(1, round(given.minutes * 1000 / 30)) if given.faults is None else given.faults,
        runs=given.runs,
        apis=given.apis,
        workers=given.workers,
        run_seconds=given.run_seconds,
        lease=given.lease,
    )
    say(f"chaos with seed {options.seed}: {options.faults} faults in {options.minutes:g} minutes, {options.runs} runs")
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)  # our own pool meets the faults of Postgres, too
    folder = given.folder or Path(tempfile.mkdtemp(prefix="longhaul-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    findings = uvloop.run(chaos(options, folder))
    if findings:
        say(f"\n{len(findings)} findings with seed {options.seed}; logs are in {folder}/stack/logs")
        for text in findings:
            say(f"- {text}")
        sys.exit(1)
    say(f"\nevery promise was kept (seed {options.seed})")
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
