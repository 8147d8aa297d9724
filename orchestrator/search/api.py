"""What the engines with an HTTP API have in common: a request, its failures told apart, and a JSON object.

The address is the operator's choice, so it may be private; nothing else that is private can be reached through it,
and a redirect is not followed, since it would carry a query or a key elsewhere. Messages name the engine and what is
wrong, never its address, the query, the key or what the engine wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import orjson
import structlog

from orchestrator.egress import EgressClient, EgressFailed, EgressRefused, EgressResponse
from orchestrator.search.port import SearchFailed, SearchLimited, SearchRefused

log = structlog.get_logger(__name__)

_MOST_BYTES: Final = 2 * 1_048_576
_SECONDS: Final = 15.0
_LONGEST_WAIT: Final = 3_600.0


class SearchApi:
    """One engine's API.

    Args:
        engine: its name, for messages.
        base: its address without the path of a call; it may be private.
    """

    def __init__(self, engine: str, base: str) -> None:
        self.engine = engine
        self._base = base.rstrip("/")
        parts = urlsplit(base)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._egress = EgressClient(allow=[f"{host}:{port}"], timeout=_SECONDS, max_bytes=_MOST_BYTES)

    async def ask(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        refused: Callable[[int, bytes], str | None] = lambda status, body: None,
    ) -> dict[str, Any]:
        """The JSON object that the engine answers with: a POST where there is a body, else a GET.

        `refused` may know from status and body that the operator must act, and then says why.

        Raises:
            SearchFailed, SearchLimited, SearchRefused
        """
        given = {"Accept": "application/json", **(headers or {})}
        content = None
        if body is not None:
            content = orjson.dumps(body)
            given["Content-Type"] = "application/json"
        url = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            response = await self._egress.request(
                "GET" if body is None else "POST", url, headers=given, content=content, follow=False
            )
        except EgressRefused as error:
            raise self._refused(f"its address can't be used: {error.message}") from None
        except EgressFailed as error:
            # The message names host and port, which may be of the operator's own network.
            log.warning("search_engine_silent", engine=self.engine, reason=error.message)
            raise SearchFailed(f"{self.engine} did not answer", retryable=error.retryable) from None
        if response.status != 200:
            raise self._failure(response, refused)
        try:
            answer = None if response.truncated else orjson.loads(response.body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            kind = "more than 2 MB" if response.truncated else "something that is not its JSON"
            log.error("search_answer_not_readable", engine=self.engine, content_type=response.content_type[:100])
            raise SearchFailed(f"{self.engine} answered with {kind}")
        return answer

    async def aclose(self) -> None:
        await self._egress.aclose()

    def _failure(self, response: EgressResponse, refused: Callable[[int, bytes], str | None]) -> SearchFailed:
        status = response.status
        if (why := refused(status, response.body)) is not None:
            return self._refused(why, status)
        if status == 429:
            return SearchLimited(f"{self.engine} takes no more requests for now", retry_after=_retry_after(response))
        if status in (401, 403):
            return self._refused("it does not take the key", status)
        if status == 402:
            return self._refused("what was paid for is used up", status)
        if 300 <= status < 400 or status in (404, 405):
            return self._refused("LONGHAUL_SEARCH_URL does not lead to its API", status)
        if status == 408 or status >= 500:
            return SearchFailed(f"{self.engine} failed with status {status}", retryable=True)
        return SearchFailed(f"{self.engine} did not take the query (status {status})")

    def _refused(self, why: str, status: int | None = None) -> SearchRefused:
        log.error("search_refused", engine=self.engine, reason=why, status=status)
        return SearchRefused(f"{self.engine}: {why}")


def entries(answer: Mapping[str, Any], engine: str, *path: str) -> Iterable[Mapping[str, Any]]:
    """The list of objects at `path`; empty if there is none.

    Raises:
        SearchFailed: something else is there.
    """
    found: Any = answer
    for step in path:
        found = found.get(step) if isinstance(found, dict) else found
    if found is None:
        return ()
    if not isinstance(found, list) or (found and not any(isinstance(entry, dict) for entry in found)):
        raise SearchFailed(f"{engine} answered with something that is not its JSON")
    return [entry for entry in found if isinstance(entry, dict)]


def _retry_after(response: EgressResponse) -> float | None:
    """Seconds; from Retry-After, or what Brave sends instead: seconds until each of its windows begins anew."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        text = response.headers.get("X-RateLimit-Reset", "").partition(",")[0].strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return min(float(text), _LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), _LONGEST_WAIT)
