"""Reading memories: one, pages of them, all of a user's. An asker sees what is the org's, and their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import orjson

from kernel.errors import NotFound
from kernel.postgres import Connection, Pool
from kernel.sql import statements
from memory.patience import in_time
from memory.records import Filter, MemoryItem, Scope

SQL = statements(__package__, "reading.sql")

_FIRST: Final = "mem_"
_LAST: Final = "mem`"  # above every id
_EXPORTED_AT_ONCE: Final = 500


async def get(db: Pool | Connection, scope: Scope, memory_id: str, *, everyone: bool) -> MemoryItem:
    """Raises NotFound where there is none that the asker may see."""
    row = await db.fetchrow(SQL.get, scope.org_id, memory_id, everyone, *owners(scope))
    if row is None:
        raise NotFound(f"There is no memory {memory_id}.", field="memory_id")
    return item_of(row)


async def page(
    db: Pool | Connection, scope: Scope, where: Filter, after: str | None, limit: int, *, everyone: bool
) -> list[MemoryItem]:
    """The newest first, below the id `after`."""
    asked = (
        scope.org_id,
        _LAST if after is None else after,
        limit,
        [*where.kinds],
        [*where.scopes],
        [*where.document_ids],
        where.ended,
    )
    if everyone:
        rows = await db.fetch(SQL.list_everyone, *asked)
    else:
        rows = await db.fetch(SQL.list_visible, *asked, *owners(scope))
    return [item_of(row) for row in rows]


async def export(db: Pool, org_id: str, user_id: str, patience: float) -> AsyncIterator[MemoryItem]:
    """All memories of a user, the oldest first; `patience` seconds for each page of them."""
    after = _FIRST
    while True:
        async with in_time(patience):
            rows = await db.fetch(SQL.export, org_id, user_id, after, _EXPORTED_AT_ONCE)
        for row in rows:
            yield item_of(row)
        if len(rows) < _EXPORTED_AT_ONCE:
            return
        after = rows[-1]["id"]


def owners(scope: Scope) -> tuple[str | None, str | None, str | None]:
    """Who asks, as the statements have it: user, agent, session."""
    return scope.user_id, scope.agent_id, scope.session_id


def item_of(row: asyncpg.Record) -> MemoryItem:
    """A row of `memory_items`."""
    fields = dict(row)
    for name in ("no", "shelf", "org_id"):
        del fields[name]
    fields["metadata"] = None if fields["metadata"] is None else orjson.loads(fields["metadata"])
    return MemoryItem(**fields)
