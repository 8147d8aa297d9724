"""The port that every search engine fills, and how a search can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kernel.errors import LonghaulError


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page. Clean one-line texts: `title` of at most 300 characters, `snippet` of 1,000. `url` is http or https."""

    title: str
    url: str
    snippet: str


class SearchEngine(Protocol):
    """Where searches are made. Safe for any number of them at once."""

    @property
    def name(self) -> str:
        """What operators call it."""

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        """At most `limit` (1 to 20) pages, best first, each once.

        Raises:
            SearchLimited: the engine takes no more requests for a while.
            SearchRefused: the operator must act.
            SearchFailed: anything else.
        """

    async def aclose(self) -> None:
        """Gives back what it holds. It must not be used afterwards."""


class SearchFailed(LonghaulError):
    """A search brought no answer. `retryable`: the same search may succeed in a moment."""

    code = "search_failed"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class SearchLimited(SearchFailed):
    """Too many requests. `retry_after` is in seconds, None if the engine does not say."""

    code = "search_limited"

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message, retryable=True)
        self.retry_after = retry_after


class SearchRefused(SearchFailed):
    """The engine does not take the key or is not what was configured, or its quota is used up."""

    code = "search_refused"
