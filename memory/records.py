"""The nouns of memory: who asks, what is kept, what is looked for, what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Kind = Literal["fact", "preference", "summary", "knowledge", "procedure"]
KINDS: tuple[Kind, ...] = ("fact", "preference", "summary", "knowledge", "procedure")

ScopeKind = Literal["org", "user", "agent", "session"]
"""Who can recall a memory: everybody in the org, one user, whoever runs one agent, or one session."""

Provenance = Literal["person", "tool", "model"]
"""Who says so: a person over the API, a tool that an agent called, or a model that read a conversation."""

MAX_TEXT = 8000
"""Characters in one memory, at most."""

MAX_CONTEXT = 1000
"""Characters of the words that a memory is found by beside its own, at most."""

MAX_QUERY = 1000
"""Characters of a query that are looked at: of a longer one its beginning and its end."""

MAX_SOURCE = 500
"""Characters in a memory's source, at most."""

MAX_ITEMS = 50
"""Items that one recall gives, at most."""

MAX_BATCH = 2000
"""Memories that are written at once, at most."""

MAX_ENTITIES = 32
"""Entities of one memory, at most."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Who remembers or recalls: they see what is the org's, and what is of their user, agent and session.

    The run is provenance only.
    """

    org_id: str
    user_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewMemory:
    """What is to be kept.

    `scope` None is the user's where there is one, else the org's. `confidence` is in [0, 1], of 4 digits. `valid_from`
    and `valid_until` say when it is true; what is not valid now is not recalled. `entities` are names and numbers it is
    about; None finds them in the text. `thread` and `place` (both or neither) say what it stands in, such as a
    conversation or a document, and where: neighbours share in each other's relevance. `context` holds further words to
    find it by: who said it, when, below which headings. `metadata` is the caller's, 16 KB of JSON at most.
    """

    text: str
    kind: Kind = "fact"
    scope: ScopeKind | None = None
    source: str | None = None
    provenance: Provenance = "tool"
    confidence: float = 1.0
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    entities: Sequence[str] | None = None
    thread: str | None = None
    place: int | None = None
    context: str | None = None
    document_id: str | None = None
    page: int | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One memory as it is kept.

    `owner` is the id of the user, agent or session that `scope` names, None for the org. `ended_at` is when it stopped
    to count, `superseded_by` what took its place; such a memory can be read and is never recalled.
    """

    id: str
    scope: ScopeKind
    owner: str | None
    kind: Kind
    text: str
    source: str | None
    provenance: Provenance
    confidence: float
    valid_from: datetime | None
    valid_until: datetime | None
    ended_at: datetime | None
    superseded_by: str | None
    entities: Sequence[str]
    thread: str | None
    place: int | None
    context: str | None
    document_id: str | None
    page: int | None
    metadata: Mapping[str, Any] | None
    agent_id: str | None
    session_id: str | None
    run_id: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def user_id(self) -> str | None:
        """Whose it is, if it is one user's."""
        return self.owner if self.scope == "user" else None


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be changed of a memory; `given` are the names of the fields that are, also those set to None."""

    given: frozenset[str]
    text: str | None = None
    kind: Kind | None = None
    source: str | None = None
    confidence: float | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    entities: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which memories count; an empty one is all. `ended` also lists those that are over, which recall never gives."""

    kinds: Sequence[Kind] = ()
    scopes: Sequence[ScopeKind] = ()
    document_ids: Sequence[str] = ()
    ended: bool = False


@dataclass(frozen=True, slots=True)
class RecalledItem:
    """One memory that answers a query. `score` is in (0, 1] and compares items of one answer only."""

    id: str
    text: str
    kind: Kind
    score: float
    created_at: datetime
    scope: ScopeKind = "org"
    source: str | None = None
    provenance: Provenance = "tool"
    confidence: float = 1.0
    valid_from: datetime | None = None
    document_id: str | None = None
    page: int | None = None
    thread: str | None = None
    place: int | None = None
    metadata: Mapping[str, Any] | None = field(default=None, compare=False)
