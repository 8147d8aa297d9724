"""An embedding endpoint on loopback, whose model knows a few synonyms and else only spelling."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from aiohttp import web
from pydantic import SecretStr

from memory.embedders.openai import OpenAIEmbedder

_SYNONYMS = ({"car", "automobile", "vehicle", "汽车", "轿车"}, {"physician", "doctor", "医生"})
_WORD = re.compile("汽车|轿车|医生|[\u4e00-\u9fff]|[a-z]{3,}")


class EmbeddingEndpoint:
    """Serves `POST /v1/embeddings`. `answers` are used up first, one for each request; `requests` holds the bodies.

    Vectors have 512 dimensions and all lean one way, as those of many models do: unrelated texts have a cosine of 0.5.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[web.Response] = []
        self.url = ""

    def embedder(self, *, key: str = "sk-of-the-tests", timeout: float = 15.0, retries: int = 2) -> OpenAIEmbedder:
        return OpenAIEmbedder(
            base_url=self.url,
            api_key=SecretStr(key),
            model="concepts",
            timeout=timeout,
            retries=retries,
            backoff=0.001,
        )

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/embeddings", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.answers:
            return self.answers.pop(0)
        return web.json_response(answer_for(body["input"]))


def answer_for(texts: list[str]) -> dict[str, Any]:
    """What the endpoint answers, last text first: clients have to look at the index."""
    rows = [{"index": index, "embedding": concept_vector(text)} for index, text in enumerate(texts)]
    return {"object": "list", "model": "concepts", "data": rows[::-1]}


def concept_vector(text: str) -> list[float]:
    """Not of unit length."""
    values = [0.0] * 512
    for word in set(_WORD.findall(text.lower())) - {"the"}:
        concepts = [number for number, words in enumerate(_SYNONYMS) if word in words]
        place = concepts[0] if concepts else 8 + crc32(word.encode()) % 480
        values[place] += 4.0 if concepts else 1.0
    values[511] = sum(value * value for value in values) ** 0.5 or 1.0
    return values
