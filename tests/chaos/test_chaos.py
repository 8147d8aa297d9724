"""A short chaos: what `make chaos` does for half an hour, for a quarter of a minute."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ARGUMENTS = "--seed 20 --minutes 0.25 --faults 26 --runs 20 --run-seconds 4 --workers 3 --lease 2"


async def test_some_seconds_of_chaos_leave_every_promise_kept(folder: Path) -> None:
    chaos = (sys.executable, "-P", "-m", "tests.chaos", "--folder", str(folder / "chaos"), *ARGUMENTS.split())
    process = await asyncio.create_subprocess_exec(
        *chaos, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
