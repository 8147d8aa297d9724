"""Cursor paging: `?limit=` and `?cursor=` in, `{"data": […], "next_cursor": …}` out.

A cursor is opaque to callers. It holds the sort key of the last item of a page, so pages stay right while items
come and go. It grants nothing: the org is part of every query.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import Field

from api.problems import Refusal, invalid
from api.values import Query

T = TypeVar("T")


class PageQuery(Query):
    """Which part of a list."""

    limit: int = Field(default=20, ge=1, le=100, description="items per page")
    cursor: str | None = Field(default=None, max_length=500, description="`next_cursor` of the page before")


def page(
    items: Sequence[T], limit: int, *, show: Callable[[T], Any], key: Callable[[T], Sequence[str | int]]
) -> dict[str, Any]:
    """A page of at most `limit` of `items`, which are one more if there is another page."""
    shown = items[:limit]
    return {
        "data": [show(item) for item in shown],
        "next_cursor": _encode(key(shown[-1])) if len(items) > limit else None,
    }


def read_cursor(cursor: str | None, *kinds: type[str] | type[int]) -> tuple[Any, ...] | None:
    """The sort key in a cursor, whose parts are of these kinds; None without a cursor."""
    if cursor is None:
        return None
    try:
        parts = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, NotBase64):
        raise bad_cursor() from None
    if not isinstance(parts, list) or len(parts) != len(kinds):
        raise bad_cursor()
    for part, kind in zip(parts, kinds, strict=True):
        if type(part) is not kind or (isinstance(part, int) and not -1 <= part < 2**31):
            raise bad_cursor()
        if isinstance(part, str) and ("\x00" in part or len(part) > 512):
            raise bad_cursor()
    return tuple(parts)


def bad_cursor() -> Refusal:
    """The refusal of a cursor that no list gave out."""
    return invalid(("cursor", "is not a cursor of this list"))


def _encode(parts: Sequence[str | int]) -> str:
    return urlsafe_b64encode(orjson.dumps(list(parts))).decode().rstrip("=")
