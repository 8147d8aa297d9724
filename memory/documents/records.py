"""The nouns of the knowledge base: a document as it is shown, what is uploaded, and how much an org may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from kernel.settings import Settings
from memory.documents.formats import Format
from memory.records import Scope, ScopeKind

Status = Literal["queued", "parsing", "embedding", "ready", "failed"]

JOB: str = "document"
"""The kind of the job that takes documents in; its key is the document's id."""

ATTEMPTS = 8
"""Tries of that job, some hours apart in the end, where a store or the embedder is away."""


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """Bytes of one document, bytes and number of all of an org."""

    bytes: int
    org_bytes: int
    per_org: int

    @classmethod
    def from_settings(cls, settings: Settings) -> DocumentLimits:
        return cls(settings.documents_max_bytes, settings.documents_org_bytes, settings.documents_per_org)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document stands: its org, whose it is, and its name there."""

    org_id: str
    scope: ScopeKind
    owner: str | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document. What is said of type, size and digest is of its newest `version`; `served` is the version whose
    passages are searched, None before the first is in. `facts`, `passages` are of that one. `progress` holds
    {"stage", "done", "total"} while it is being taken in; `error` {"code", "message", "suggestions"?, "retry_at"?}."""

    id: str
    org_id: str
    scope: ScopeKind
    owner: str | None
    name: str
    version: int
    served: int | None
    format: Format
    media_type: str
    size: int
    sha256: str
    status: Status
    error: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    passages: int
    metadata: Mapping[str, Any] | None
    user_id: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.status in ("ready", "failed")


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage as it is kept: `id` is that of the memory, `place` counts from 0 within the document."""

    id: str
    text: str
    context: str | None
    place: int
    page: int | None
    source: str | None
    created_at: datetime


def scope_of(org_id: str, kind: str, owner: str | None) -> Scope:
    """Who keeps the passages of a document of this scope."""
    return Scope(
        org_id,
        user_id=owner if kind == "user" else None,
        agent_id=owner if kind == "agent" else None,
        session_id=owner if kind == "session" else None,
    )
