"""The port: what a memory backend has to do. `PostgresMemory` is the one that comes with Longhaul."""

from __future__ import annotations

from typing import Protocol

from memory.records import Kind, MemoryItem, RecalledItem, Scope


class Memory(Protocol):
    """Remembers texts and recalls the relevant ones."""

    async def remember(self, scope: Scope, text: str, *, kind: Kind = "fact", source: str | None = None) -> MemoryItem:
        """Keeps `text`. The same text again, in the same org and for the same user, updates what is there.

        Args:
            text: 1 to `MAX_TEXT` characters; NUL and lone surrogates are dropped, the ends are trimmed.
            source: where it comes from, in a few words or as an address; at most `MAX_SOURCE` characters.

        Raises:
            InvalidInput: nothing to keep, or too long; `field` says what.
            NotFound: there is no such org.
            MemoryUnavailable: nothing was kept; trying again is safe.
        """
        ...

    async def recall(self, scope: Scope, query: str, *, limit: int = 5) -> list[RecalledItem]:
        """What is relevant to `query`, best first; nothing where nothing is.

        Args:
            query: any text; of one longer than `MAX_QUERY` characters its beginning and end count.
            limit: 1 to `MAX_ITEMS` items.

        Raises:
            InvalidInput: `limit` is out of range.
            MemoryUnavailable: the memories can't be read now.
        """
        ...
