"""That the bench runs: its figures are nobody's test."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


async def test_a_row_is_measured_beside_its_floor_and_written_as_json(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "--only", "memory", "--json", str(figures)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await bench.communicate()
    assert bench.returncode == 0, output.decode()
    assert b"a Python with the libraries of the worker" in output
    assert json.loads(figures.read_bytes())["machine"]["python"]
