"""Reads a response body up to a cap. The cap counts what comes out of decompression, so a bomb stays small."""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from aiohttp import ClientResponse

from orchestrator.egress.errors import EgressFailed

ACCEPT_ENCODING: Final = "gzip, deflate"


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Identity:
    eof = False

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return data[:max_length]


async def read(response: ClientResponse, limit: int) -> tuple[bytes, bool]:
    """At most `limit` bytes of the body, and whether there was more. What is over the cap is never read.

    Raises:
        EgressFailed: compressed in a way that was not offered, or broken.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    decoder: _Decoder | None = None
    body = bytearray()
    async for chunk in response.content.iter_any():
        if decoder is None:
            decoder = _decoder(encoding, chunk)
        try:
            # One byte more than fits tells a full body from a cut one.
            body += decoder.decompress(chunk, limit + 1 - len(body))
        except zlib.error:
            raise EgressFailed(
                f"{response.url.host} sent a body that cannot be decompressed", retryable=False
            ) from None
        if len(body) > limit:
            response.close()
            return bytes(body[:limit]), True
        if decoder.eof:  # what follows is no part of the body, and the decoder would hoard it
            response.close()
            break
    return bytes(body), False


def _decoder(encoding: str, start: bytes) -> _Decoder:
    if encoding in ("", "identity"):
        return _Identity()
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    if encoding == "deflate":
        # The standard says zlib; some servers send the bare stream. A zlib header's low four bits are 8.
        zlib_header = start[0] & 0x0F == 8
        return zlib.decompressobj(wbits=zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
    raise EgressFailed(f"the body is compressed as {encoding[:40]!r}, which was not asked for", retryable=False)
