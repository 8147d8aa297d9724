"""Tavily (https://docs.tavily.com/documentation/api-reference/endpoint/search)."""

from __future__ import annotations

from typing import Final

from pydantic import SecretStr

from orchestrator.search.api import SearchApi, entries
from orchestrator.search.port import SearchFailed, SearchResult
from orchestrator.search.results import tidy

_ADDRESS: Final = "https://api.tavily.com"
_LONGEST_QUERY: Final = 400
_USED_UP: Final = (432, 433)  # the plan's limit, and that of paying as one goes


class Tavily:
    """Searches with an API key."""

    name = "tavily"

    def __init__(self, key: SecretStr, url: str = _ADDRESS) -> None:
        self._api = SearchApi(self.name, url)
        self._key = key

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        answer = await self._api.ask(
            "/search",
            body={"query": query[:_LONGEST_QUERY], "max_results": limit, "search_depth": "basic"},
            headers={"Authorization": f"Bearer {self._key.get_secret_value()}"},
            refused=lambda status, body: "what was paid for is used up" if status in _USED_UP else None,
        )
        if not isinstance(answer.get("results"), list):
            raise SearchFailed(f"{self.name} answered with something that is not its JSON")
        found = entries(answer, self.name, "results")
        return tidy(((entry.get("title"), entry.get("url"), entry.get("content")) for entry in found), limit)

    async def aclose(self) -> None:
        await self._api.aclose()
