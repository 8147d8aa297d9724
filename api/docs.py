"""`/openapi.json` and `/docs`: the API described, for programs and for people.

The page is one file of our own with nothing from elsewhere; its content policy allows just that file's script
and style.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, Final

from api.endpoint import Answer, Call, Endpoint, NoQuery

_INLINE: Final = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)
_PAGE: Final = resources.files(__package__).joinpath("docs.html").read_bytes()


def _policy(page: bytes) -> bytes:
    hashes = {kind.decode(): b64encode(hashlib.sha256(text).digest()).decode() for kind, text in _INLINE.findall(page)}
    return (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'"
    ).encode()


_POLICY: Final = _policy(_PAGE)


class Docs:
    """The endpoints that describe all others, and themselves."""

    def __init__(self, others: Sequence[Endpoint[Any, Any]], *, version: str) -> None:
        self._others = others
        self._version = version
        self._document = b""
        self._building = asyncio.Lock()

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        yield Endpoint(
            method="GET",
            path="/openapi.json",
            handler=self.show_document,
            tag="health",
            summary="This description as OpenAPI 3.1",
            scope=None,
            media_type="application/json",
        )
        yield Endpoint(
            method="GET",
            path="/docs",
            handler=self.show_page,
            tag="health",
            summary="This description as a page",
            scope=None,
            media_type="text/html",
        )

    async def show_document(self, call: Call[None, NoQuery]) -> Answer:
        async with self._building:
            if not self._document:
                self._document = await asyncio.to_thread(self._build)
        return Answer(self._document)

    def _build(self) -> bytes:
        """The document, built by the first who asks. It takes about 0.1 s and 3 MB, and most processes are never
        asked. Nothing else uses the models of answers, so a thread of its own may complete them."""
        from api.openapi import build_document

        return build_document([*self._others, *self.endpoints()], version=self._version)

    async def show_page(self, call: Call[None, NoQuery]) -> Answer:
        headers = ((b"content-security-policy", _POLICY),)
        return Answer(_PAGE, content_type=b"text/html; charset=utf-8", headers=headers)
