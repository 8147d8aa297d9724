"""Writing memories: new ones, changes, ends, removals. One transaction each, of one round trip but for `supersede`.

What always holds: a memory that is not over has words, and counts; one that is over has none. The counts, by which the
rarity of words is judged, change in the transaction of what they count.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import orjson

from kernel.errors import Conflict, InvalidInput
from kernel.ids import new_id
from kernel.postgres import Connection, Pool
from kernel.sql import statements
from memory.indexing import Indexed
from memory.reading import owners
from memory.records import MemoryItem, NewMemory, Scope, ScopeKind
from memory.spaces import Space

SQL = statements(__package__, "writing.sql")

AT_ONCE: Final = 1000
"""Memories that are removed in one transaction, at most."""

_ROWS_AT_ONCE: Final = 64  # more would hold up the event loop for milliseconds

_ORDER: Final[tuple[ScopeKind, ...]] = ("agent", "org", "session", "user")  # in which everybody asks for shelves


def distinct(memories: Sequence[NewMemory]) -> dict[tuple[str, str, str], NewMemory]:
    """By scope, document and text; of several that are alike the last one counts, as if it had come later."""
    return dict(zip(names(memories), memories, strict=True))


def names(memories: Sequence[NewMemory]) -> list[tuple[str, str, str]]:
    """What tells memories of one writer apart. Two documents may have a passage in common: each keeps its own."""
    return [(str(memory.scope), memory.document_id or "", memory.text) for memory in memories]


async def write(
    db: Pool | Connection,
    scope: Scope,
    memories: Sequence[NewMemory],
    indexed: Indexed,
    space: Space | None,
    *,
    timeout: float | None = None,
) -> list[MemoryItem]:
    """Keeps distinct memories that were checked; one item for each, in order."""
    kinds = shelves(*(_kind(memory) for memory in memories))
    if len(memories) <= _ROWS_AT_ONCE:
        given = _rows(scope, memories, kinds)
    else:
        given = await asyncio.to_thread(_rows, scope, memories, kinds)
    with _keepable():
        rows = await db.fetch(
            SQL.write,
            scope.org_id,
            kinds,
            [owner_of(scope, kind) or "" for kind in kinds],
            given,
            *indexed.words(),
            space.id if space else None,
            indexed.vectors if space else None,
            timeout=timeout,
        )
    return [_item(scope, memory, row) for memory, row in zip(memories, rows, strict=True)]


async def change(
    db: Pool | Connection,
    scope: Scope,
    old: MemoryItem,
    fields: Mapping[str, Any],
    indexed: Indexed | None,
    space: Space | None,
) -> None:
    """Changes `fields` of a memory; `indexed` where its text is another one now.

    Raises:
        Conflict: it is over by now, or another memory of its scope has this text.
    """
    patch = dict(fields)
    if indexed is not None:
        patch["content_hash"] = _hash(old.scope, old.owner, old.document_id, patch["text"])
        patch |= {"embedding": None, "embedding_model": None, "search": None}
    told = (indexed.terms[0], indexed.impacts[0], indexed.lengths[0], indexed.found) if indexed else (None,) * 4
    place = (space.id, indexed.vectors[0]) if indexed and space else (None, None)
    try:
        with _keepable():
            changed = await db.fetchval(SQL.change, scope.org_id, old.id, orjson.dumps(patch).decode(), *told, *place)
    except asyncpg.UniqueViolationError as error:
        raise Conflict(
            "Another memory of this scope has this text already.", suggestions=("forget one of the two",)
        ) from error
    if not changed:
        raise Conflict(f"The memory {old.id} is over.")


async def supersede(
    connection: Connection,
    scope: Scope,
    old: MemoryItem,
    new: NewMemory | None,
    indexed: Indexed | None,
    space: Space | None,
) -> MemoryItem | None:
    """Ends a memory, and keeps `new` in its place; that, or None. Inside a transaction. `scope` owns both.

    Nothing is written where it was over before.
    """
    kinds = shelves(old.scope, *(() if new is None else (_kind(new),)))
    await connection.fetchval(SQL.shelve, scope.org_id, kinds, [owner_of(scope, kind) or "" for kind in kinds])
    if not await connection.fetchval(SQL.end, scope.org_id, old.id) or new is None or indexed is None:
        return None
    [item] = await write(connection, scope, [new], indexed, space)
    await connection.execute(SQL.name_successor, scope.org_id, old.id, item.id)
    return item


async def forget(db: Pool | Connection, scope: Scope, memory_ids: Sequence[str], *, everyone: bool) -> int:
    """Removes what the asker may see of these; how many there were."""
    return int(await db.fetchval(SQL.forget, scope.org_id, [*memory_ids], everyone, *owners(scope)))


def shelves(*kinds: ScopeKind) -> list[ScopeKind]:
    """The kinds of shelves that are needed, each once, in the order in which everybody locks them."""
    return [kind for kind in _ORDER if kind in kinds]


def owner_of(scope: Scope, kind: ScopeKind) -> str | None:
    """Whose the shelf is."""
    user, agent, session = owners(scope)
    return {"org": None, "user": user, "agent": agent, "session": session}[kind]


@contextmanager
def _keepable() -> Iterator[None]:
    """What only Postgres can tell of the metadata: as JSONB it is larger than as text, and holds no NUL."""
    try:
        yield
    except asyncpg.UntranslatableCharacterError as error:
        raise InvalidInput("metadata holds a NUL, which can't be kept", field="metadata") from error
    except asyncpg.CheckViolationError as error:
        if "metadata" not in (error.constraint_name or ""):
            raise
        raise InvalidInput("metadata is too large", field="metadata") from error


def _kind(memory: NewMemory) -> ScopeKind:
    assert memory.scope is not None, "checked() fills it in"
    return memory.scope


def _rows(scope: Scope, memories: Sequence[NewMemory], kinds: Sequence[ScopeKind]) -> str:
    return orjson.dumps([_row(scope, memory, 1 + kinds.index(_kind(memory))) for memory in memories]).decode()


def _row(scope: Scope, memory: NewMemory, shelf: int) -> dict[str, Any]:
    kind = _kind(memory)
    owner = owner_of(scope, kind)
    return {
        "id": new_id("mem"),
        "shelf": shelf,
        "user_id": owner if kind == "user" else None,
        "agent_id": scope.agent_id,
        "session_id": scope.session_id,
        "run_id": scope.run_id,
        "kind": memory.kind,
        "text": memory.text,
        "source": memory.source,
        "content_hash": _hash(kind, owner, memory.document_id, memory.text),
        "provenance": memory.provenance,
        "confidence": memory.confidence,
        "valid_from": memory.valid_from,
        "valid_until": memory.valid_until,
        "entities": [*(memory.entities or ())],
        "thread": memory.thread,
        "place": memory.place,
        "context": memory.context,
        "document_id": memory.document_id,
        "page": memory.page,
        "metadata": None if memory.metadata is None else dict(memory.metadata),
    }


def _hash(kind: ScopeKind, owner: str | None, document_id: str | None, text: str) -> str:
    """What tells texts of one org and user apart, as a bytea literal. Agents, sessions and documents stand apart."""
    named = text if kind in ("org", "user") else f"{kind}:{owner}\0{text}"
    if document_id is not None:
        named = f"{document_id}\0{named}"
    return f"\\x{hashlib.sha256(named.encode()).hexdigest()}"


def _item(scope: Scope, memory: NewMemory, row: asyncpg.Record) -> MemoryItem:
    kind = _kind(memory)
    return MemoryItem(
        id=row["id"],
        scope=kind,
        owner=owner_of(scope, kind),
        kind=memory.kind,
        text=memory.text,
        source=memory.source,
        provenance=memory.provenance,
        confidence=memory.confidence,
        valid_from=memory.valid_from,
        valid_until=memory.valid_until,
        ended_at=None,
        superseded_by=None,
        entities=[*(memory.entities or ())],
        thread=memory.thread,
        place=memory.place,
        context=memory.context,
        document_id=memory.document_id,
        page=memory.page,
        metadata=memory.metadata,
        agent_id=scope.agent_id,
        session_id=scope.session_id,
        run_id=scope.run_id,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
