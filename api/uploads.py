"""Bodies of any type and length, taken as they come in: what uploads of files and documents have in common."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from starlette.types import Receive

from api.intake import Headers
from api.problems import Refusal, invalid, refuse

UPLOAD_SECONDS: Final = 1_800.0
CLOSE: Final = ((b"connection", b"close"),)
_IDLE_SECONDS: Final = 20.0
_CONTENT_TYPE_BYTES: Final = 200
_CONTENT_TYPE: Final = re.compile(rb"[!#$&^_.+a-zA-Z0-9-]{1,80}/[!#$&^_.+a-zA-Z0-9-]{1,80}(?: *;[ -~]{0,100})?")


class Incoming:
    """The body as it comes in. `ended` says whether there is anything more to come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def pieces(self) -> AsyncIterator[bytes]:
        while not self.ended:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise too_slow() from None
            self.ended = not message.get("more_body", False)
            if message["type"] == "http.disconnect":
                raise refuse(400, "incomplete_body", "The body broke off.")
            if piece := message.get("body", b""):
                yield piece


def too_slow() -> Refusal:
    """The body took too long."""
    return refuse(408, "body_too_slow", "The body did not arrive in time.", headers=CLOSE)


def content_type_in(headers: Headers) -> str | None:
    """The Content-Type header, None without one."""
    given = headers.get(b"content-type")
    if given is None:
        return None
    given = given.strip()
    if len(given) > _CONTENT_TYPE_BYTES or _CONTENT_TYPE.fullmatch(given) is None:
        raise invalid(
            ("Content-Type", f"must be a media type such as text/csv, of at most {_CONTENT_TYPE_BYTES} characters")
        )
    return given.decode()
