"""Exa (https://exa.ai/docs/reference/search)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import SecretStr

from orchestrator.search.api import SearchApi, entries
from orchestrator.search.port import SearchFailed, SearchResult
from orchestrator.search.results import tidy

_ADDRESS: Final = "https://api.exa.ai"


class Exa:
    """Searches with an API key."""

    name = "exa"

    def __init__(self, key: SecretStr, url: str = _ADDRESS) -> None:
        self._api = SearchApi(self.name, url)
        self._key = key

    async def search(self, query: str, limit: int) -> list[SearchResult]:
        answer = await self._api.ask(
            "/search",
            body={"query": query, "numResults": limit, "type": "auto", "contents": {"highlights": True}},
            headers={"x-api-key": self._key.get_secret_value()},
        )
        if not isinstance(answer.get("results"), list):
            raise SearchFailed(f"{self.name} answered with something that is not its JSON")
        found = entries(answer, self.name, "results")
        return tidy(((entry.get("title"), entry.get("url"), _snippet(entry)) for entry in found), limit)

    async def aclose(self) -> None:
        await self._api.aclose()


def _snippet(entry: Mapping[str, Any]) -> str:
    highlights = entry.get("highlights")
    if isinstance(highlights, list) and (texts := [text for text in highlights if isinstance(text, str)]):
        return " … ".join(texts)
    return next((text for name in ("summary", "text") if isinstance(text := entry.get(name), str)), "")
