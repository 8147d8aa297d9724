"""The nouns of memory: whose it is, what is kept, what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Kind = Literal["fact", "preference", "summary", "knowledge", "procedure"]

MAX_TEXT = 8000
"""Characters in one memory, at most."""

MAX_QUERY = 1000
"""Characters of a query that are looked at: of a longer one its beginning and its end."""

MAX_SOURCE = 500
"""Characters in a memory's source, at most."""

MAX_ITEMS = 50
"""Items that one recall gives, at most."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Who remembers or recalls.

    `org_id` and `user_id` decide who may see a memory: it stays in the org, and one that was saved with a user is
    that user's alone. Without a user it is the whole org's. Agent, session and run are provenance: they are
    kept with a memory and never hide it.
    """

    org_id: str
    user_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One memory as it is kept. `user_id` None: the whole org's."""

    id: str
    user_id: str | None
    kind: Kind
    text: str
    source: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class RecalledItem:
    """One memory that answers a query. `score` is in (0, 1] and compares items of one answer only."""

    id: str
    text: str
    kind: Kind
    score: float
    created_at: datetime
