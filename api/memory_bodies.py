"""What requests about memories say, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field, model_validator

from api.paging import PageQuery
from api.values import Body, Metadata, Query, View
from memory.records import (
    MAX_CONTEXT,
    MAX_ENTITIES,
    MAX_ITEMS,
    MAX_QUERY,
    MAX_SOURCE,
    MAX_TEXT,
    Kind,
    ScopeKind,
)

_MOST_AT_ONCE: Final = 500

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]
Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE, pattern=r"\S")]
Entities = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_ENTITIES)]
UserId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class Content(Body):
    """What a memory says."""

    text: Text
    kind: Kind = "fact"
    source: Source | None = None
    confidence: float = Field(default=1.0, ge=0, le=1)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = Field(default=None, description="from then on it is not recalled")
    entities: Entities | None = Field(
        default=None, description="names and numbers it is about; null: found in the text"
    )
    context: str | None = Field(
        default=None, min_length=1, max_length=MAX_CONTEXT, pattern=r"\S", description="further words to find it by"
    )
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Content:
        if self.valid_from is not None and self.valid_until is not None and self.valid_until < self.valid_from:
            raise ValueError("valid_until must not be before valid_from")
        return self


class MemoryContent(Content):
    """A memory that takes another's place, in the same scope."""


class NewMemoryBody(Content):
    """A memory to be kept. Without a scope it is the user's, or the org's where there is no user."""

    scope: ScopeKind | None = None
    user_id: UserId | None = Field(
        default=None, description="whose it is; a caller who is a user can only name themself"
    )
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class MemoryBatch(Body):
    """Memories of one scope, kept all or none."""

    memories: list[Content] = Field(min_length=1, max_length=_MOST_AT_ONCE)
    scope: ScopeKind | None = None
    user_id: UserId | None = None
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class MemoryPatch(Body):
    """Fields of a memory to be replaced; what is left out stays."""

    text: Text = Field(default="")
    kind: Kind = "fact"
    source: Source | None = None
    confidence: float = Field(default=1.0, ge=0, le=1)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None
    entities: Entities = Field(default=[])
    metadata: Metadata | None = None


class Search(Body):
    """What to look for, and among which memories."""

    query: str = Field(
        min_length=1, max_length=20_000, description=f"its first and last {MAX_QUERY // 2} characters count"
    )
    limit: int = Field(default=10, ge=1, le=MAX_ITEMS)
    kinds: list[Kind] = Field(default=[], max_length=5)
    scopes: list[ScopeKind] = Field(default=[], max_length=4)
    document_ids: list[Annotated[str, Field(pattern=r"^doc_[0-9a-f]{32}$")]] = Field(default=[], max_length=100)
    user_id: UserId | None = Field(default=None, description="what an agent would recall that works for this user")
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")


class Erasure(Body):
    """Whose memories are to go."""

    user_id: UserId


class MemoryQuery(PageQuery):
    """Which memories to list."""

    kind: Kind | None = None
    scope: ScopeKind | None = None
    document_id: str | None = Field(default=None, pattern=r"^doc_[0-9a-f]{32}$")
    user_id: UserId | None = None
    agent_id: str | None = Field(default=None, pattern=r"^agt_[0-9a-f]{32}$")
    session_id: str | None = Field(default=None, pattern=r"^ses_[0-9a-f]{32}$")
    ended: bool = Field(default=False, description="also those that are over")


class ExportQuery(Query):
    """Whose memories."""

    user_id: UserId


class MemoryView(View):
    """A memory."""

    id: str
    scope: ScopeKind
    owner: str | None = Field(description="the id of the user, agent or session; null for the org")
    kind: Kind
    text: str
    source: str | None
    provenance: Literal["person", "tool", "model"] = Field(description="who says so")
    confidence: float
    valid_from: AwareDatetime | None
    valid_until: AwareDatetime | None
    ended_at: AwareDatetime | None = Field(description="since when it counts no more")
    superseded_by: str | None
    entities: list[str]
    thread: str | None
    place: int | None
    context: str | None
    document_id: str | None
    page: int | None
    metadata: dict[str, Any] | None
    agent_id: str | None
    session_id: str | None
    run_id: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class MemoryPage(View):
    """Memories."""

    data: list[MemoryView]
    next_cursor: str | None


class MemoryList(View):
    """Memories that were kept, in the order in which they came."""

    data: list[MemoryView]


class FoundView(View):
    """A memory that answers a query."""

    id: str
    text: str
    kind: Kind
    score: float = Field(description="in (0, 1]; compares results of one search only")
    created_at: AwareDatetime
    scope: ScopeKind
    source: str | None
    provenance: Literal["person", "tool", "model"]
    confidence: float
    valid_from: AwareDatetime | None
    document_id: str | None
    page: int | None
    thread: str | None
    place: int | None
    metadata: dict[str, Any] | None


class Found(View):
    """What answers a query, best first."""

    data: list[FoundView]


class Erased(View):
    """How many memories there were."""

    erased: int
