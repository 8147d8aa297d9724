"""SearXNG, a metasearch engine that an operator runs (https://docs.searxng.org/dev/search_api).

Its settings must allow JSON: `search.formats: [html, json]`.
"""

from __future__ import annotations

from typing import Final

from orchestrator.search.api import SearchApi, entries
from orchestrator.search.port import SearchFailed, SearchResult
from orchestrator.search.results import tidy

_NO_JSON: Final = "it refuses JSON: add json to search.formats in its settings.yml, or let the workers past its limiter"


class SearXNG:
    """Searches through one instance."""

    name = "searxng"

    def __init__(self, url: str) -> None:
        self._api = SearchApi(self.name, url)

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        answer = await self._api.ask(
            "/search",
            query={"q": query, "format": "json"},
            refused=lambda status, body: _NO_JSON if status == 403 else None,
        )
        if not isinstance(answer.get("results"), list):
            raise SearchFailed(f"{self.name} answered with something that is not its JSON")
        found = entries(answer, self.name, "results")
        return tidy(((entry.get("title"), entry.get("url"), entry.get("content")) for entry in found), limit)

    async def aclose(self) -> None:
        await self._api.aclose()
