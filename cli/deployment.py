"""The deployment that a command is about: the one that `--database-url` names, else the development stack that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from kernel.postgres import Pool

T = TypeVar("T")


def with_database(work: Callable[[Pool], Awaitable[T]], database_url: str | None, data_dir: Path | None) -> T:
    """What `work` gives on a pool of that deployment's database."""
    from cli.database import database
    from cli.state import default_directory, find_running

    target = database_url or find_running(data_dir or default_directory()).database_url

    async def connected() -> T:
        async with database(target) as pool:
            return await work(pool)

    return asyncio.run(connected())
