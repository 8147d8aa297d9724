"""`/v1/documents`: the knowledge base. Uploads are taken in by workers; the document says how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import structlog

from api.document_events import DocumentEvents
from api.document_views import (
    DocumentPage,
    DocumentsQuery,
    DocumentView,
    NewDocument,
    NewText,
    PassagePage,
    UploadQuery,
    shown,
    shown_passage,
)
from api.download import Download
from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.intake import discard
from api.memory_access import MemoryAccess, OfWhom
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid, refuse
from api.uploads import CLOSE, UPLOAD_SECONDS, Incoming, content_type_in, too_slow
from kernel.errors import CallerError, Forbidden, LonghaulError
from kernel.ids import is_id
from kernel.tenants import Principal
from memory.documents.formats import MEDIA_TYPES
from memory.documents.records import Document, Place
from memory.documents.store import Documents, no_document
from memory.records import Scope

log = structlog.get_logger(__name__)


class KnowledgeBase:
    """The endpoints of documents. `closing` says whether the process is going."""

    def __init__(self, documents: Documents, access: MemoryAccess, *, closing: Callable[[], bool]) -> None:
        self._documents = documents
        self._access = access
        self._closing = closing

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        many, tag = "/v1/documents", "documents"
        one = f"{many}/{{document_id}}"
        yield Endpoint(
            method="POST",
            path=many,
            handler=self.create,
            tag=tag,
            summary="Upload a document",
            description="The body is the document (text, Markdown, HTML, PDF, DOCX or CSV), or JSON with its text. A "
            "document of this name and scope gets a new version; the same bytes once more change nothing (200). Its "
            "passages can be recalled once its status is `ready`.",
            scope="write",
            raw=True,
            body=NewDocument,
            query=UploadQuery,
            response=DocumentView,
            status=202,
            also={200: DocumentView},
            problems=(404, 409),
            location="/v1/documents/{id}",
            seconds=None,
        )
        yield Endpoint(
            method="GET",
            path=many,
            handler=self.list,
            tag=tag,
            summary="List documents, newest first",
            description="A user sees the org's and their own, those of an agent or session if it is named.",
            scope="read",
            query=DocumentsQuery,
            response=DocumentPage,
            problems=(404,),
        )
        yield Endpoint(
            method="GET",
            path=one,
            handler=self.get,
            tag=tag,
            summary="Get a document",
            scope="read",
            response=DocumentView,
        )
        yield Endpoint(
            method="PUT",
            path=one,
            handler=self.replace,
            tag=tag,
            summary="Upload a new version of a document",
            description="The version before is searched until the new one is in, and stays where that can't be read. "
            "Passages that are the same in both stay as they are.",
            scope="write",
            raw=True,
            body=NewText,
            response=DocumentView,
            status=202,
            also={200: DocumentView},
            problems=(409,),
            seconds=None,
        )
        yield Endpoint(
            method="DELETE",
            path=one,
            handler=self.delete,
            tag=tag,
            summary="Delete a document with all its passages",
            scope="write",
            status=204,
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/content",
            handler=self.content,
            tag=tag,
            summary="Download a document",
            description="The version that is searched, else the one that is being taken in.",
            scope="read",
            media_type="*/*",
            also={206: None, 304: None},
            problems=(416,),
            request_headers=("If-None-Match", "Range"),
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/passages",
            handler=self.passages,
            tag=tag,
            summary="List a document's passages, in reading order",
            scope="read",
            query=PageQuery,
            response=PassagePage,
        )
        yield Endpoint(
            method="GET",
            path=f"{one}/events",
            handler=self.events,
            tag=tag,
            summary="Follow how a document is taken in",
            description="Server-sent events whenever it changes: `progress`, and as the last one `ready`, `failed` or "
            "`deleted`. The data is the document.",
            scope="read",
            media_type="text/event-stream; charset=utf-8",
            stream=True,
        )

    async def create(self, call: Call[NewDocument | None, UploadQuery]) -> Answer:
        given: NewDocument | UploadQuery = call.body or call.query
        if given.name is None:
            raise invalid(("name", "is needed: the name of the document, such as handbook.pdf"))
        of = OfWhom(given.user_id, given.agent_id, given.session_id)
        writer = await self._access.writer(call.principal, of, given.scope)
        owner = {"org": None, "user": writer.scope.user_id, "agent": of.agent_id, "session": of.session_id}[writer.kind]
        return await self._upload(call, Place(call.org_id, writer.kind, owner, given.name), None)

    async def replace(self, call: Call[NewText | None, NoQuery]) -> Answer:
        document = await self._changeable(call.principal, call.path["document_id"])
        place = Place(call.org_id, document.scope, document.owner, document.name)
        return await self._upload(call, place, document.id)

    async def list(self, call: Call[None, DocumentsQuery]) -> Answer:
        query = call.query
        cursor = read_cursor(query.cursor, str)
        if cursor is not None and not is_id("doc", cursor[0]):
            raise bad_cursor()
        reader = await self._access.reader(call.principal, OfWhom(query.user_id, query.agent_id, query.session_id))
        found = await self._documents.list(
            reader.scope,
            everyone=reader.everyone,
            kind=query.scope,
            before=cursor[0] if cursor else None,
            limit=query.limit + 1,
        )
        return Answer(page(found, query.limit, show=shown, key=lambda document: (document.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(shown(await self._visible(call.principal, call.path["document_id"])))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        document = await self._changeable(call.principal, call.path["document_id"])
        await self._documents.delete(call.org_id, document.id)
        try:
            # The job does it too, and for certain; so the passages are not recalled any more from now on.
            await (await self._access.memory()).forget_document(call.org_id, document.id)
        except LonghaulError as error:
            log.warning("passages_not_removed_yet", document_id=document.id, error=error.message, effect="its job does")
        return Answer()

    async def content(self, call: Call[None, NoQuery]) -> Answer:
        document = await self._visible(call.principal, call.path["document_id"])
        where = call.org_id, document.id, document.name
        await self._documents.stat(*where)
        return Answer(app=Download(self._documents, *where, call.headers))

    async def passages(self, call: Call[None, PageQuery]) -> Answer:
        document = await self._visible(call.principal, call.path["document_id"])
        cursor = read_cursor(call.query.cursor, int)
        limit = call.query.limit
        found = await self._documents.passages(
            call.org_id, document.id, after=cursor[0] if cursor else -1, limit=limit + 1
        )
        return Answer(page(found, limit, show=shown_passage, key=lambda passage: (passage.place,)))

    async def events(self, call: Call[None, NoQuery]) -> Answer:
        document = await self._visible(call.principal, call.path["document_id"])
        return Answer(app=DocumentEvents(self._documents, document, shown, closing=self._closing))

    async def _upload(self, call: Call[Any, Any], place: Place, document_id: str | None) -> Answer:
        if call.body is not None:
            data: bytes | AsyncIterator[bytes] = call.body.text.encode()
            media_type = f"{MEDIA_TYPES['text']}; charset=utf-8"
            document, changed = await self._documents.upload(
                place,
                data,
                media_type=media_type,
                user_id=call.principal.user_id,
                metadata=call.body.metadata,
                document_id=document_id,
            )
            return _answer(document, changed)
        announced = call.headers.get(b"content-length", b"")
        body = Incoming(call.receive)
        clock = asyncio.timeout(UPLOAD_SECONDS)
        try:
            async with clock:
                document, changed = await self._documents.upload(
                    place,
                    body.pieces(),
                    media_type=content_type_in(call.headers) or "",
                    user_id=call.principal.user_id,
                    announced=int(announced) if announced.isdigit() and len(announced) < 19 else None,
                    document_id=document_id,
                )
        except TimeoutError:
            if clock.expired():
                raise too_slow() from None
            raise  # Postgres did not answer
        except CallerError as error:
            # A client that waits for leave to send has not sent anything.
            if not body.ended and b"expect" not in call.headers:
                await discard(call.receive)
            if error.status == 413:
                raise refuse(413, error.code, error.message, suggestions=error.suggestions, headers=CLOSE) from None
            raise
        return _answer(document, changed)

    async def _visible(self, principal: Principal, document_id: str) -> Document:
        """A document that the caller may see. Raises NotFound."""
        document = await self._documents.get(Scope(principal.org_id), document_id, everyone=True)
        if principal.user_id is None or "admin" in principal.scopes or document.scope in ("org", "agent"):
            return document
        if document.scope == "session":
            try:
                await self._access.reader(principal, OfWhom(session_id=document.owner))
            except CallerError:
                raise no_document(document_id) from None
            return document
        if document.owner != principal.user_id:
            raise no_document(document_id)
        return document

    async def _changeable(self, principal: Principal, document_id: str) -> Document:
        """A document that the caller may change. Raises NotFound, Forbidden."""
        document = await self._visible(principal, document_id)
        all_of_it = principal.user_id is None or "admin" in principal.scopes
        if document.scope in ("org", "agent") and not all_of_it:
            raise Forbidden(f"The document belongs to the {document.scope}: only an admin changes it.")
        return document


def _answer(document: Document, changed: bool) -> Answer:
    return Answer(shown(document), 202 if changed else 200)
