"""Reranking by any endpoint that speaks the `POST /rerank` of Cohere and Jina.

One request, no retries: a question is waiting, and recall has an order without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import aiohttp
import orjson
from pydantic import SecretStr

from memory.rerankers.port import RerankerUnavailable

_LONGEST: Final = 4000  # characters of one text: models read about 512 to 2,000 tokens
_MOST_BYTES: Final = 1_048_576  # of an answer
_CHECK: Final = "check LONGHAUL_RERANK_BASE_URL, LONGHAUL_RERANK_API_KEY and LONGHAUL_RERANK_MODEL"


class EndpointReranker:
    """Reranks over HTTP.

    Args:
        base_url: such as `https://api.cohere.com/v2` or `https://api.jina.ai/v1`.
        api_key: sent as bearer token; empty for endpoints that want none.
        timeout: seconds for one request.
    """

    def __init__(self, *, base_url: str, api_key: SecretStr, model: str, timeout: float = 5.0) -> None:
        self._url = f"{base_url.rstrip('/')}/rerank"
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._http: aiohttp.ClientSession | None = None  # opened by the first call: it belongs to an event loop

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        if not texts:
            return []
        body = orjson.dumps(
            {
                "model": self._model,
                "query": query,
                "documents": [text[:_LONGEST] for text in texts],
                "top_n": len(texts),
            }
        )
        return _scores(await self._post(body), len(texts))

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _post(self, body: bytes) -> bytes:
        """The body of a successful answer."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        try:
            async with self._http.post(self._url, data=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise _unusable(f"it answered {response.status}")
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > _MOST_BYTES:
                        raise _unusable(f"its answer is longer than {_MOST_BYTES} bytes")
                return bytes(answer)
        except TimeoutError as error:
            raise _unusable(f"no answer within {self._timeout.total:g} s") from error
        except aiohttp.ClientError as error:
            raise _unusable(type(error).__name__) from error


def _scores(answer: bytes, expected: int) -> list[float]:
    """The scores of an answer in the order of the texts. One that names a text twice, none or a stranger is refused."""
    try:
        found = {int(row["index"]): float(row["relevance_score"]) for row in orjson.loads(answer)["results"]}
        if sorted(found) != list(range(expected)) or not all(map(math.isfinite, found.values())):
            raise ValueError("not one score for each text")
    except (ValueError, TypeError, KeyError) as error:
        raise _unusable(f"its answer is not that of a rerank endpoint: {str(error)[:200]}") from error
    return [found[index] for index in range(expected)]


def _unusable(reason: str) -> RerankerUnavailable:
    return RerankerUnavailable(f"the rerank endpoint gave no scores: {reason}", suggestions=(_CHECK,))
