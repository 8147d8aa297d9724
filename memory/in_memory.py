"""Memories in this process: the port without a database, for tests and for reading.

Recall looks at all memories of the org, one by one: BM25, and nothing else. What is kept is gone with the process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from kernel.errors import Conflict, NotFound
from kernel.ids import new_id
from memory.checks import checked, checked_change, checked_limit, clipped
from memory.port import ALL
from memory.records import Changes, Filter, Kind, MemoryItem, NewMemory, RecalledItem, Scope, ScopeKind
from memory.terms import terms
from memory.words import HIGHEST_IMPACT, Words, number, rarity, words

_LEAST_SHARE: Final = 0.2
"""Of what a question's terms are worth: what covers less of it is not relevant."""


@dataclass(frozen=True, slots=True)
class _Kept:
    item: MemoryItem
    words: Words


class InMemory:
    """A `Memory`. Safe to share between tasks of one event loop."""

    def __init__(self) -> None:
        self._orgs: dict[str, dict[str, _Kept]] = {}

    async def remember(self, scope: Scope, text: str, *, kind: Kind = "fact", source: str | None = None) -> MemoryItem:
        [item] = await self.remember_all(scope, [NewMemory(text, kind, source=source)])
        return item

    async def remember_all(self, scope: Scope, memories: Sequence[NewMemory]) -> list[MemoryItem]:
        new = checked(scope, memories)
        return [self._keep(scope, memory) for memory in new]

    async def recall(
        self, scope: Scope, query: str, *, limit: int = 5, where: Filter = ALL, everyone: bool = False
    ) -> list[RecalledItem]:
        checked_limit(limit)
        kept = self._orgs.get(scope.org_id, {})
        current = [one for one in kept.values() if one.item.ended_at is None]
        having: dict[int, int] = {}
        for one in current:
            for key in one.words.numbers:
                having[key] = having.get(key, 0) + 1
        asked = {number(term): 0.0 for term in terms(clipped(query))}
        worth = {key: rarity(len(current), having.get(key, 0)) for key in asked}
        whole = sum(worth.values())
        now = datetime.now(UTC)
        found: list[tuple[float, MemoryItem]] = []
        for one in current:
            item = one.item
            if not _visible(item, scope, everyone) or not _wanted(item, where) or not _valid(item, now):
                continue
            impacts = dict(zip(one.words.numbers, one.words.impacts, strict=True))
            if sum(worth[key] for key in asked if key in impacts) < _LEAST_SHARE * whole or not whole:
                continue
            score = sum(worth[key] * impacts.get(key, 0.0) for key in asked) / (whole * HIGHEST_IMPACT)
            if score > 0:
                found.append((min(score, 1.0), item))
        found.sort(key=lambda pair: (pair[0], pair[1].id), reverse=True)
        return [_recalled(item, score) for score, item in found[:limit]]

    async def get(self, scope: Scope, memory_id: str, *, everyone: bool = False) -> MemoryItem:
        return self._visible(scope, memory_id, everyone).item

    async def list(
        self,
        scope: Scope,
        *,
        where: Filter = ALL,
        after: str | None = None,
        limit: int = 50,
        everyone: bool = False,
    ) -> list[MemoryItem]:
        shown = [
            item
            for item in self._items(scope.org_id)
            if _visible(item, scope, everyone)
            and _wanted(item, where)
            and (where.ended or item.ended_at is None)
            and (after is None or item.id < after)
        ]
        return sorted(shown, key=lambda item: item.id, reverse=True)[:limit]

    async def change(self, scope: Scope, memory_id: str, changes: Changes, *, everyone: bool = False) -> MemoryItem:
        old = self._visible(scope, memory_id, everyone).item
        if old.ended_at is not None:
            raise Conflict(f"The memory {memory_id} is over.")
        fields = checked_change(changes, old)
        if "text" in fields and (twin := self._twin(scope.org_id, old, fields["text"])) is not None:
            raise Conflict(f"The memory {twin.id} has this text already.", suggestions=("forget one of the two",))
        return self._put(scope.org_id, replace(old, **fields, updated_at=datetime.now(UTC)))

    async def supersede(
        self, scope: Scope, memory_id: str, by: NewMemory | None, *, everyone: bool = False
    ) -> MemoryItem:
        old = self._visible(scope, memory_id, everyone).item
        if old.ended_at is not None:
            return old
        if by is None:
            return self._put(scope.org_id, replace(old, ended_at=datetime.now(UTC)))
        owner = _scope_of(scope, old)
        [new] = checked(owner, [by if by.scope is not None else replace(by, scope=old.scope)])
        self._put(scope.org_id, replace(old, ended_at=datetime.now(UTC)))
        item = self._keep(owner, new)
        self._put(scope.org_id, replace(self._orgs[scope.org_id][old.id].item, superseded_by=item.id))
        return item

    async def forget(self, scope: Scope, memory_ids: Sequence[str], *, everyone: bool = False) -> int:
        kept = self._orgs.get(scope.org_id, {})
        gone = [id for id in set(memory_ids) if id in kept and _visible(kept[id].item, scope, everyone)]
        return self._remove(scope.org_id, gone)

    async def forget_document(self, org_id: str, document_id: str) -> int:
        return self._remove(org_id, [item.id for item in self._items(org_id) if item.document_id == document_id])

    async def export(self, org_id: str, user_id: str) -> AsyncIterator[MemoryItem]:
        for item in sorted(self._items(org_id), key=lambda item: item.id):
            if item.user_id == user_id:
                yield item

    async def erase(self, org_id: str, user_id: str) -> int:
        return self._remove(org_id, [item.id for item in self._items(org_id) if item.user_id == user_id])

    def _items(self, org_id: str) -> Iterator[MemoryItem]:
        return (one.item for one in [*self._orgs.get(org_id, {}).values()])

    def _visible(self, scope: Scope, memory_id: str, everyone: bool) -> _Kept:
        kept = self._orgs.get(scope.org_id, {}).get(memory_id)
        if kept is None or not _visible(kept.item, scope, everyone):
            raise NotFound(f"There is no memory {memory_id}.", field="memory_id")
        return kept

    def _twin(self, org_id: str, of: MemoryItem, text: str) -> MemoryItem | None:
        """Another memory of the same scope with this text, that is not over."""
        for item in self._items(org_id):
            alike = (item.scope, item.owner, item.document_id, item.text) == (
                of.scope,
                of.owner,
                of.document_id,
                text,
            )
            if alike and item.id != of.id and item.ended_at is None:
                return item
        return None

    def _keep(self, scope: Scope, new: NewMemory) -> MemoryItem:
        assert new.scope is not None
        now = datetime.now(UTC)
        owner = _owner(scope, new.scope)
        item = MemoryItem(
            id=new_id("mem"),
            scope=new.scope,
            owner=owner,
            kind=new.kind,
            text=new.text,
            source=new.source,
            provenance=new.provenance,
            confidence=new.confidence,
            valid_from=new.valid_from,
            valid_until=new.valid_until,
            ended_at=None,
            superseded_by=None,
            entities=tuple(new.entities or ()),
            thread=new.thread,
            place=new.place,
            context=new.context,
            document_id=new.document_id,
            page=new.page,
            metadata=new.metadata,
            agent_id=scope.agent_id,
            session_id=scope.session_id,
            run_id=scope.run_id,
            created_at=now,
            updated_at=now,
        )
        if (twin := self._twin(scope.org_id, item, item.text)) is not None:
            item = replace(item, id=twin.id, created_at=twin.created_at)
        return self._put(scope.org_id, item)

    def _put(self, org_id: str, item: MemoryItem) -> MemoryItem:
        self._orgs.setdefault(org_id, {})[item.id] = _Kept(item, words(item.text, item.context))
        return item

    def _remove(self, org_id: str, ids: Sequence[str]) -> int:
        for id in ids:
            del self._orgs[org_id][id]
        return len(ids)


def _owner(scope: Scope, kind: ScopeKind) -> str | None:
    owners: dict[ScopeKind, str | None] = {
        "org": None,
        "user": scope.user_id,
        "agent": scope.agent_id,
        "session": scope.session_id,
    }
    return owners[kind]


def _scope_of(scope: Scope, item: MemoryItem) -> Scope:
    """The asker, with the owner of `item` in their place."""
    match item.scope:
        case "user":
            return replace(scope, user_id=item.owner)
        case "agent":
            return replace(scope, agent_id=item.owner)
        case "session":
            return replace(scope, session_id=item.owner)
        case _:
            return scope


def _visible(item: MemoryItem, scope: Scope, everyone: bool) -> bool:
    return everyone or item.scope == "org" or item.owner == _owner(scope, item.scope)


def _wanted(item: MemoryItem, where: Filter) -> bool:
    return (
        (not where.kinds or item.kind in where.kinds)
        and (not where.scopes or item.scope in where.scopes)
        and (not where.document_ids or item.document_id in where.document_ids)
    )


def _valid(item: MemoryItem, now: datetime) -> bool:
    return (item.valid_from is None or item.valid_from <= now) and (item.valid_until is None or now < item.valid_until)


def _recalled(item: MemoryItem, score: float) -> RecalledItem:
    return RecalledItem(
        id=item.id,
        text=item.text,
        kind=item.kind,
        score=score,
        created_at=item.created_at,
        scope=item.scope,
        source=item.source,
        provenance=item.provenance,
        confidence=item.confidence,
        valid_from=item.valid_from,
        document_id=item.document_id,
        page=item.page,
        thread=item.thread,
        place=item.place,
        metadata=item.metadata,
    )
