"""What comes in with a request, read and checked: body, query, headers.

What always holds: whatever passes is a valid model, within its bounds, and has no text that Postgres could not
keep (NUL bytes, lone surrogates). Whatever does not pass is refused with the name of the field.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from api.problems import Refusal, invalid, refuse
from kernel.events import MAX_SEQ

M = TypeVar("M", bound=BaseModel)
Headers = Mapping[bytes, bytes]

IDEMPOTENCY_KEY_PATTERN: Final = r"^[!-~]([ -~]{0,253}[!-~])?$"

_IDEMPOTENCY_KEY: Final = re.compile(IDEMPOTENCY_KEY_PATTERN.strip("^$").encode())
_SEQ: Final = re.compile(r"[0-9]{1,19}")
_JSON_TYPE: Final = re.compile(rb'application/(?:[a-z0-9.+-]+\+)?json\s*(?:;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)
_SUSPECT: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNPRINTABLE: Final = re.compile("[\x00\ud800-\udfff]")

# A client that is still sending would not see the answer: so much more is read and thrown away.
_MOST_DISCARDED: Final = 16 * 1_048_576
_DISCARD_SECONDS: Final = 2.0
_BODY_SECONDS: Final = 30.0


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The body, at most `limit` bytes and within half a minute; more is refused, announced or not."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read_body(receive, headers, limit)
    except TimeoutError:
        raise refuse(
            408, "body_too_slow", "The body did not arrive in time.", headers=((b"connection", b"close"),)
        ) from None


def is_json(headers: Headers) -> bool:
    """Whether the body is said to be JSON."""
    return _JSON_TYPE.fullmatch(headers.get(b"content-type", b"").strip()) is not None


def check_content_type(headers: Headers) -> None:
    """Refuses what is not JSON. A body without a type is taken for JSON."""
    given = headers.get(b"content-type")
    if given is not None and _JSON_TYPE.fullmatch(given.strip()) is None:
        raise refuse(
            415,
            "unsupported_media_type",
            "The body must be JSON in UTF-8.",
            suggestions=("send it with Content-Type: application/json",),
        )


def parse_body(model: type[M], raw: bytes) -> M:
    """The body as `model`."""
    if _SUSPECT.search(raw) is not None:
        _refuse_unprintable(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise refuse(
                400,
                "malformed_json",
                f"The body is not valid JSON{first['msg'].removeprefix('Invalid JSON')}.",
                suggestions=("check it with a JSON parser",),
            ) from None
        raise


def parse_query(model: type[M], query: bytes) -> M:
    """The query parameters as `model`, each of them given once."""
    given: dict[str, str] = {}
    for name, value in query_pairs(query):
        if name in given:
            raise invalid((name, "may be given only once"))
        given[name] = value
    return model.model_validate_strings(given)


def query_pairs(query: bytes) -> Iterator[tuple[str, str]]:
    """The decoded (name, value) pairs of a query string."""
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            shown = unquote_to_bytes(name.replace(b"+", b" ")).decode("utf-8", "replace")
            yield query_text(shown, name), query_text(shown, value)


def query_text(name: str, raw: bytes) -> str:
    """A percent-encoded text, decoded; a refusal names the parameter `name`."""
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise invalid((_visible(name), "must be UTF-8")) from None
    if _UNPRINTABLE.search(text):
        raise invalid((_visible(name), "must not contain NUL"))
    return text


def check_path(values: Mapping[str, str]) -> None:
    """Refuses path parameters that hold a NUL."""
    for name, value in values.items():
        if "\x00" in value:
            raise invalid((name, "must not contain NUL"))


def idempotency_key(headers: Headers) -> str | None:
    """The caller's Idempotency-Key, if any."""
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    if _IDEMPOTENCY_KEY.fullmatch(given) is None:
        raise invalid(("Idempotency-Key", "must be 1 to 255 printable ASCII characters"))
    return given.decode()


def sequence_number(name: str, text: str) -> int:
    """A place in an event log, 0 to 2^63-1. `name` is the parameter or header it came in."""
    if _SEQ.fullmatch(text) is None or int(text) > MAX_SEQ:
        raise invalid((name, f"must be a whole number from 0 to {MAX_SEQ}"))
    return int(text)


def wants_stream(headers: Headers) -> bool:
    """Whether the caller would rather have server-sent events than JSON."""
    accept = headers.get(b"accept", b"")
    stream = accept.find(b"text/event-stream")
    return stream >= 0 and not 0 <= accept.find(b"application/json") < stream


def _refuse_unprintable(raw: bytes) -> None:
    try:
        fields = [(path or "body", what) for path, what in _unprintable(json.loads(raw), "")]
    except (ValueError, RecursionError):
        return  # not JSON at all: the real parser says where
    if fields:
        raise invalid(*fields[:50])


def _unprintable(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if "\x00" in value:
            yield path, "must not contain NUL"
        elif _UNPRINTABLE.search(value):
            yield path, "must not contain half of a surrogate pair"
    elif isinstance(value, dict):
        for key, item in value.items():
            below = f"{path}.{_visible(key)}" if path else _visible(key)
            yield from _unprintable(key, below)
            yield from _unprintable(item, below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unprintable(item, f"{path}.{index}" if path else str(index))


def _visible(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)


async def _read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or int(announced) > limit:
        if b"expect" not in headers:
            await discard(receive, limit)
        raise _too_large(limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refuse(400, "incomplete_body", "The body broke off.")
        body += message.get("body", b"")
        if len(body) > limit:
            if message.get("more_body", False):
                await discard(receive, limit)
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


async def discard(receive: Receive, limit: int = 0) -> None:
    """Reads what is still coming in, within bounds: a client that is sending would not see the answer."""
    left = max(_MOST_DISCARDED, limit)
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_large(limit: int) -> Refusal:
    return refuse(
        413, "body_too_large", f"The body is larger than {limit} bytes.", headers=((b"connection", b"close"),)
    )
