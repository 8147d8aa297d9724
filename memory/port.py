"""The port: what a memory backend has to do. `PostgresMemory` is the one that comes with Longhaul, `InMemory` the one
for tests and for reading; `memory/conformance.py` says what every backend must hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from memory.records import Changes, Filter, Kind, MemoryItem, NewMemory, RecalledItem, Scope

ALL = Filter()


class Memory(Protocol):
    """Remembers texts and recalls the relevant ones.

    Whoever asks is a `Scope`: it sees what is the org's, and what is of its user, its agent and its session, and
    nothing else ever. A caller without a user who may see all of an org passes `everyone=True`.

    Every method raises `MemoryUnavailable` where the backend can't be reached: nothing was changed, and trying again is
    safe.
    """

    async def remember(self, scope: Scope, text: str, *, kind: Kind = "fact", source: str | None = None) -> MemoryItem:
        """Keeps one text; see `remember_all`."""
        ...

    async def remember_all(self, scope: Scope, memories: Sequence[NewMemory]) -> list[MemoryItem]:
        """Keeps all of them or none; at most `MAX_BATCH`. The same text again in the same scope, and of the same
        document if it is a passage, updates what is there.

        NUL and lone surrogates are dropped from texts, their ends are trimmed.

        Raises:
            InvalidInput: nothing to keep, too long, too many, or a scope whose owner is missing; `field` says what.
            NotFound: there is no such org.
        """
        ...

    async def recall(
        self, scope: Scope, query: str, *, limit: int = 5, where: Filter = ALL, everyone: bool = False
    ) -> list[RecalledItem]:
        """What is relevant to `query`, best first; nothing where nothing is.

        Args:
            query: any text; of one longer than `MAX_QUERY` characters its beginning and end count.
            limit: 1 to `MAX_ITEMS` items.

        Raises:
            InvalidInput: `limit` is out of range.
        """
        ...

    async def get(self, scope: Scope, memory_id: str, *, everyone: bool = False) -> MemoryItem:
        """Also one that is over.

        Raises:
            NotFound: there is none that the asker may see.
        """
        ...

    async def list(
        self,
        scope: Scope,
        *,
        where: Filter = ALL,
        after: str | None = None,
        limit: int = 50,
        everyone: bool = False,
    ) -> list[MemoryItem]:
        """The newest first; `after` is the id of the last one of the page before."""
        ...

    async def change(self, scope: Scope, memory_id: str, changes: Changes, *, everyone: bool = False) -> MemoryItem:
        """Changes a memory in place. One that is over can't be changed.

        Raises:
            NotFound: there is none that the asker may see.
            Conflict: it is over, or another memory of its scope has this text.
            InvalidInput: as with `remember_all`.
        """
        ...

    async def supersede(
        self, scope: Scope, memory_id: str, by: NewMemory | None, *, everyone: bool = False
    ) -> MemoryItem:
        """Ends a memory: it stays readable, with its end, and is recalled no more. `by` takes its place, in the same
        scope if it names none. Ending one that is over changes nothing.

        Returns:
            The memory that took its place, else the one that was ended.

        Raises:
            NotFound: there is none that the asker may see.
        """
        ...

    async def forget(self, scope: Scope, memory_ids: Sequence[str], *, everyone: bool = False) -> int:
        """Removes memories for good; how many there were."""
        ...

    async def forget_document(self, org_id: str, document_id: str) -> int:
        """Removes all passages of a document; how many there were."""
        ...

    def export(self, org_id: str, user_id: str) -> AsyncIterator[MemoryItem]:
        """All memories of one user, also those that are over, the oldest first."""
        ...

    async def erase(self, org_id: str, user_id: str) -> int:
        """Removes all memories of one user, for good; how many there were."""
        ...
