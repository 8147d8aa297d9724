"""What requests about documents hold, and how documents and passages are shown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from api.paging import PageQuery
from api.values import AgentId, Body, Metadata, Query, SessionId, View
from memory.documents.records import Document, Status, StoredPassage
from memory.records import ScopeKind

_UserId = Field(default=None, min_length=1, max_length=200)
_SCOPE = "who can recall it; left out, it is the user's where there is one, else the org's"


class NewDocument(Body):
    """A document that is a text."""

    name: str = Field(min_length=1, max_length=255, description="its end says what it is: .txt, .md, .html, .csv")
    text: str = Field(min_length=1)
    scope: ScopeKind | None = Field(default=None, description=_SCOPE)
    user_id: str | None = _UserId
    agent_id: AgentId | None = None
    session_id: SessionId | None = None
    metadata: Metadata | None = None


class NewText(Body):
    """A new version of a document that is a text."""

    text: str = Field(min_length=1)
    metadata: Metadata | None = None


class UploadQuery(Query):
    """What the body is."""

    name: str | None = Field(default=None, min_length=1, max_length=255, description="needed unless the body is JSON")
    scope: ScopeKind | None = Field(default=None, description=_SCOPE)
    user_id: str | None = _UserId
    agent_id: AgentId | None = None
    session_id: SessionId | None = None


class DocumentsQuery(PageQuery):
    """Which documents."""

    scope: ScopeKind | None = None
    user_id: str | None = _UserId
    agent_id: AgentId | None = None
    session_id: SessionId | None = None


class DocumentError(View):
    """Why a document is not taken in, or not yet."""

    code: str
    message: str
    suggestions: list[str]
    retry_at: AwareDatetime | None = Field(description="when it is tried again, if it is")


class ProgressView(View):
    """How far it is."""

    stage: Literal["parsing", "embedding"]
    done: int
    total: int


class DocumentView(View):
    """A document. Type, size and digest are those of the newest version."""

    id: str
    scope: ScopeKind
    owner: str | None = Field(description="the id of the user, agent or session; null for the org")
    name: str
    version: int
    served: int | None = Field(description="the version that is searched; null before the first is in")
    media_type: str
    size: int = Field(description="bytes")
    sha256: str
    status: Status
    error: DocumentError | None
    progress: ProgressView | None
    passages: int
    facts: dict[str, Any] = Field(
        description="pages, title, encoding, rows, columns, characters: what there is of these"
    )
    metadata: dict[str, Any] | None
    user_id: str | None = Field(description="whose key or token uploaded it last")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class DocumentPage(View):
    """Documents."""

    data: list[DocumentView]
    next_cursor: str | None


class PassageView(View):
    """A passage: a memory of kind `knowledge`."""

    id: str = Field(description="that of the memory")
    text: str
    section: str | None = Field(description="the document's name and the headings above it")
    place: int
    page: int | None
    source: str | None
    created_at: AwareDatetime


class PassagePage(View):
    """Passages in reading order."""

    data: list[PassageView]
    next_cursor: str | None


def shown(document: Document) -> dict[str, Any]:
    """A document as the API shows it."""
    error = document.error
    return {
        "id": document.id,
        "scope": document.scope,
        "owner": document.owner,
        "name": document.name,
        "version": document.version,
        "served": document.served,
        "media_type": document.media_type,
        "size": document.size,
        "sha256": document.sha256,
        "status": document.status,
        "error": None if error is None else {"suggestions": [], "retry_at": None, **error},
        "progress": document.progress,
        "passages": document.passages,
        "facts": document.facts,
        "metadata": document.metadata,
        "user_id": document.user_id,
        "created_at": document.created_at,
        "updated_at": document.updated_at,
    }


def shown_passage(passage: StoredPassage) -> dict[str, Any]:
    """A passage as the API shows it."""
    return {
        "id": passage.id,
        "text": passage.text,
        "section": passage.context,
        "place": passage.place,
        "page": passage.page,
        "source": passage.source,
        "created_at": passage.created_at,
    }
