"""Brave Search (https://api-dashboard.search.brave.com/app/documentation/web-search)."""

from __future__ import annotations

from typing import Final

from pydantic import SecretStr

from orchestrator.search.api import SearchApi, entries
from orchestrator.search.port import SearchFailed, SearchResult
from orchestrator.search.results import tidy

_ADDRESS: Final = "https://api.search.brave.com/res/v1"


class Brave:
    """Searches with a subscription token."""

    name = "brave"

    def __init__(self, key: SecretStr, url: str = _ADDRESS) -> None:
        self._api = SearchApi(self.name, url)
        self._key = key

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        # More words or characters than these are refused.
        words = " ".join(query.split()[:50])[:400]
        answer = await self._api.ask(
            "/web/search",
            query={"q": words, "count": str(limit), "result_filter": "web", "text_decorations": "false"},
            headers={"X-Subscription-Token": self._key.get_secret_value()},
            refused=_refused,
        )
        if answer.get("type") != "search":
            raise SearchFailed(f"{self.name} answered with something that is not its JSON")
        found = entries(answer, self.name, "web", "results")
        return tidy(((entry.get("title"), entry.get("url"), entry.get("description")) for entry in found), limit)

    async def aclose(self) -> None:
        await self._api.aclose()


def _refused(status: int, body: bytes) -> str | None:
    # An unknown token is a 422 here, as is a query that it does not take.
    return "it does not take the key" if status == 422 and b"SUBSCRIPTION_TOKEN_INVALID" in body else None
