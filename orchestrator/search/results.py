"""What an engine returned, made fit for a model: clean, short, each page once."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from orchestrator.search.port import SearchResult
from orchestrator.tools.results import clean

_LONGEST_TITLE: Final = 300
_LONGEST_SNIPPET: Final = 1_000
_LONGEST_URL: Final = 2_048
# Marks that engines put around the words they found. Other angle brackets are the page's own, such as `list<int>`.
_MARKS: Final = re.compile(r"</?(?:a|b|br|code|em|i|mark|p|span|strong|u|wbr)(?:\s[^<>]{0,300})?/?>", re.IGNORECASE)
_INVISIBLE: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def tidy(found: Iterable[tuple[object, object, object]], limit: int) -> list[SearchResult]:
    """The first `limit` usable ones of (title, url, snippet)."""
    results: dict[str, SearchResult] = {}
    for title, url, snippet in found:
        address = _address(url)
        if address is None:
            continue
        result = SearchResult(_line(title, _LONGEST_TITLE) or address, address, _line(snippet, _LONGEST_SNIPPET))
        results.setdefault(_same(address), result)
        if len(results) == limit:
            break
    return list(results.values())


def _address(url: object) -> str | None:
    if not isinstance(url, str) or len(url) > _LONGEST_URL or not url.isprintable() or " " in url.strip():
        return None
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return None
    return clean(url.strip()) if parts.scheme in ("http", "https") and parts.hostname else None


def _same(address: str) -> str:
    """Equal for addresses that lead to one page."""
    parts = urlsplit(address)
    return f"{parts.netloc.lower().removeprefix('www.')}{parts.path.rstrip('/')}?{parts.query}"


def _line(text: object, longest: int) -> str:
    if not isinstance(text, str):
        return ""
    text = _MARKS.sub("", text[: 20 * longest])
    with suppress(ValueError):  # a character number of more digits than Python converts
        text = html.unescape(text)
    text = " ".join(clean(_INVISIBLE.sub("", text)).split())
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"
