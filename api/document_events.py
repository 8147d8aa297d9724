"""Server-sent events of a document that is being taken in.

The row is the truth, and is looked at: a document takes seconds, and few people watch it. What is sent is the document
as it is, whenever that has changed; so a follower who comes late or again has missed nothing that matters.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

import orjson
from starlette.types import Receive, Scope, Send

from kernel.errors import NotFound
from kernel.postgres import UNAVAILABLE
from memory.documents.records import Document
from memory.documents.store import Documents
from memory.records import Scope as Asker

_LOOK_SECONDS: Final = 0.4
_BEAT_EVERY: Final = 40
_HEARTBEAT: Final = b":\n\n"


class DocumentEvents:
    """The answer to one follower. `show` makes the data of an event; `closing`: the process is going."""

    def __init__(
        self,
        documents: Documents,
        document: Document,
        show: Callable[[Document], dict[str, Any]],
        *,
        closing: Callable[[], bool],
    ) -> None:
        self._documents = documents
        self._document = document
        self._show = show
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        retry = b"retry: %d\n\n" % random.randint(500, 2500)  # noqa: S311  # nothing secret
        await send({"type": "http.response.body", "body": retry, "more_body": True})
        # Something must wait here: `send` never says that the client has gone.
        leaving = asyncio.create_task(_gone(receive), name="document-follower-leaving")
        try:
            await self._follow(send, leaving)
        finally:
            leaving.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, send: Send, leaving: asyncio.Task[None]) -> None:
        last, number, quiet = b"", 0, 0
        document: Document | None = self._document
        while not (leaving.done() or self._closing()):
            data = orjson.dumps(
                {"id": self._document.id} if document is None else self._show(document), option=orjson.OPT_UTC_Z
            )
            quiet += 1
            if data != last:
                last, quiet = data, 0
                number += 1
                await self._send(send, b"id: %d\nevent: %s\ndata: %s\n\n" % (number, _name(document), data))
            elif quiet % _BEAT_EVERY == 0:
                await self._send(send, _HEARTBEAT)
            if document is None or document.settled:
                return
            await asyncio.wait([leaving], timeout=_LOOK_SECONDS)
            try:
                document = await self._documents.get(Asker(document.org_id), document.id, everyone=True)
            except NotFound:
                document = None
            except UNAVAILABLE:
                continue  # Postgres is away: it is looked at again

    async def _send(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})


def _name(document: Document | None) -> bytes:
    if document is None:
        return b"deleted"
    return document.status.encode() if document.settled else b"progress"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
