"""What the HTTP tools have in common: the arguments that each of them takes, how a request that brought no answer is
told to the model, and an answer as text that a model can use.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Mapping
from typing import Annotated, Final

import orjson
from pydantic import Field, field_validator

from orchestrator.egress import EgressClient, EgressFailed, EgressRefused, EgressResponse, Follow
from orchestrator.egress.headers import checked
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.readable import readable
from orchestrator.tools.results import Strike, clean
from orchestrator.tools.tool import Arguments, JSONValue

LONGEST_REPORT: Final = 65_536
"""Bytes of a report as JSON."""

_MOST_BYTES: Final = 1_048_576
_DEFAULT_BYTES: Final = 524_288
_SMALL: Final = 16_384
_TEXTUAL: Final = re.compile(
    r"text/.*|.*[/+](json|xml|yaml)|application/(x-)?(ndjson|json-seq|javascript|ecmascript|toml|sql|graphql"
    r"|x-www-form-urlencoded|yaml)"
)
HTML: Final = ("text/html", "application/xhtml+xml")
_META_CHARSET: Final = re.compile(rb"""<meta[^>]{0,200}charset\s{0,8}=\s{0,8}["']?([A-Za-z0-9_:.-]{1,40})""", re.I)
# Codecs that are no character set: slow without bounds, or able to fail on any input.
_NO_CHARSETS: Final = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"))
_CHARSET: Final = re.compile(r"[A-Za-z0-9_:.-]{1,40}")


class RequestArguments(Arguments):
    """Where to, and how much of the answer to read."""

    url: Annotated[str, Field(min_length=1, max_length=8_192, description="absolute http or https URL")]
    headers: Annotated[
        dict[str, str],
        Field(default_factory=dict, max_length=20, description="request headers, e.g. Accept; seldom needed"),
    ]
    max_bytes: Annotated[int, Field(ge=1, le=_MOST_BYTES, description="stop reading the body after so many bytes")] = (
        _DEFAULT_BYTES
    )

    @field_validator("headers")
    @classmethod
    def _may_be_set(cls, headers: dict[str, str]) -> dict[str, str]:
        try:
            return checked(headers)
        except EgressRefused as refused:
            raise ValueError(refused.message) from None


async def ask(
    egress: EgressClient,
    method: str,
    arguments: RequestArguments,
    *,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    follow: Follow = True,
) -> EgressResponse:
    """Makes the request of a tool with these arguments, with `headers` beside them. See `send`."""
    headers = {**arguments.headers, **(headers or {})}
    return await send(
        egress, method, arguments.url, headers=headers, content=content, max_bytes=arguments.max_bytes, follow=follow
    )


async def send(
    egress: EgressClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None = None,
    max_bytes: int = _DEFAULT_BYTES,
    timeout: float | None = None,
    follow: Follow = True,
) -> EgressResponse:
    """Makes a request.

    Raises:
        ToolFailure: there is no answer. `reached` unless not a byte of the request was sent.
    """
    try:
        return await egress.request(
            method, url, headers=headers, content=content, max_bytes=max_bytes, timeout=timeout, follow=follow
        )
    except EgressRefused as refused:
        raise ToolFailure(f"Not sent: {refused.message}.", reached=False) from None
    except EgressFailed as failed:
        raise ToolFailure(f"No answer: {failed.message}.", retryable=failed.retryable, reached=failed.reached) from None


async def report(
    response: EgressResponse, strike: Strike, *, limit: int = LONGEST_REPORT, location: bool = False
) -> dict[str, JSONValue]:
    """Status, content type, final URL, if asked for where it points, and as much of the text as fits into `limit` bytes
    of JSON. Secrets are struck before anything is cut, so that no part of one is left."""
    begun = about(response, strike)
    if location and (target := response.headers.get("Location")) is not None:
        begun["location"] = strike(clean(target))[:2_048]
    if len(response.body) <= _SMALL and response.content_type not in HTML:
        return _report(response, begun, strike, limit)
    # Reducing a big page takes a good part of a second; the event loop has other runs to serve.
    return await asyncio.to_thread(_report, response, begun, strike, limit)


def about(response: EgressResponse, strike: Strike) -> dict[str, JSONValue]:
    """What its head says."""
    return {
        "status": response.status,
        "content_type": strike(clean(response.content_type))[:200],
        "url": strike(clean(response.url))[:2_048],
    }


def _report(response: EgressResponse, report: dict[str, JSONValue], strike: Strike, limit: int) -> dict[str, JSONValue]:
    if not _is_text(response):
        size = f"{'more than ' if response.truncated else ''}{len(response.body)} bytes"
        return report | {"text": "", "note": f"binary content of {size}, not shown"}
    text = _decoded(response)
    if response.content_type in HTML:
        text = readable(text, response.url)
    text = strike(clean(text), cut=response.truncated)
    shown = _fitting(text, max(0, limit - len(orjson.dumps(report)) - 200))
    report["text"] = shown
    if response.truncated:
        report["note"] = f"cut: the body is longer than the {len(response.body)} bytes that were read"
    elif len(shown) < len(text):
        report["note"] = f"cut: the first {len(shown)} of {len(text)} characters are shown"
    return report


def text_of(response: EgressResponse) -> str | None:
    """The body in its character set; None if it is no text."""
    return _decoded(response) if _is_text(response) else None


def _is_text(response: EgressResponse) -> bool:
    if response.content_type != "application/octet-stream":
        return _TEXTUAL.fullmatch(response.content_type) is not None
    # No type, or the one that servers give to whatever they do not know.
    start = response.body[:1_024]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in start


def _decoded(response: EgressResponse) -> str:
    charset = response.charset
    if charset is None and response.content_type in HTML:
        found = _META_CHARSET.search(response.body[:2_048])
        charset = found.group(1).decode("ascii") if found else None
    if response.body.startswith(codecs.BOM_UTF8):
        charset = "utf-8-sig"
    try:
        name = codecs.lookup(charset if charset and _CHARSET.fullmatch(charset) else "utf-8").name
        return response.body.decode("utf-8" if name in _NO_CHARSETS else name, errors="replace")
    except LookupError:  # unknown, or a codec for something else than text
        return response.body.decode("utf-8", errors="replace")


def _fitting(text: str, limit: int) -> str:
    """As much of the text as takes at most `limit` bytes within JSON, so that the result stays valid JSON."""
    while (size := len(orjson.dumps(text))) > limit:
        text = text[: min(len(text) - 1, int(len(text) * limit / size))]
    return text
