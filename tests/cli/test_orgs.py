"""`longhaul orgs`: shares are shown and changed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from kernel.postgres import Pool
from kernel.tenants import ensure_org

_LONGHAUL = str(Path(sys.executable).with_name("longhaul"))


async def _orgs(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [_LONGHAUL, "orgs", *arguments, "--database-url", database_url]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=30, env={"PATH": "/usr/bin:/bin"}
    )


async def test_weights_and_caps_are_set_and_shown(database: Pool, database_url: str) -> None:
    await ensure_org(database, "acme")
    changed = await _orgs(database_url, "set", "acme", "--weight", "2.5", "--max-running", "7")
    assert changed.stdout == "acme  weight 2.5  at most 7  running 0  waiting 0  used 0 units\n"
    await _orgs(database_url, "set", "acme", "--no-cap")
    listed = await _orgs(database_url, "list")
    assert "acme  weight 2.5  no cap  running 0  waiting 0  used 0 units\n" in listed.stdout


async def test_what_cannot_be_is_refused_with_a_way_out(database: Pool, database_url: str) -> None:
    await ensure_org(database, "acme")
    unknown = await _orgs(database_url, "set", "nobody", "--weight", "2")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no org named nobody" in unknown.stderr
    assert "longhaul orgs list" in unknown.stderr
    weightless = await _orgs(database_url, "set", "acme", "--weight", "0")
    assert weightless.returncode == 1
    assert "weight must be 0.01 to 1000" in weightless.stderr
