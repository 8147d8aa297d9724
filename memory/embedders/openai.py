"""Embeddings from any endpoint that speaks OpenAI's `POST /embeddings`.

Endpoints differ in what they allow and what they return, so nothing is taken for granted: the number of dimensions
is learned from the first answer, vectors are brought to length 1 here, and how near unrelated texts are in this
model is measured once, on a few sentences that have nothing to do with each other.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import aiohttp
import orjson
from pydantic import SecretStr

from memory.embedders.nearness import UNRELATED, measured
from memory.embedders.port import Nearness
from memory.errors import EmbedderUnavailable

_BATCH = 64  # texts in one request
_LONGEST = 6000  # characters of one text: endpoints refuse more than about 8,000 tokens
_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 5.0  # seconds, whatever the endpoint asks for
_CHECK = "check LONGHAUL_EMBEDDING_BASE_URL, LONGHAUL_EMBEDDING_API_KEY and LONGHAUL_EMBEDDING_MODEL"


class OpenAIEmbedder:
    """Embeds over HTTP.

    Args:
        base_url: such as `https://api.openai.com/v1`.
        api_key: sent as bearer token; empty for endpoints that want none.
        timeout: seconds for one request.
        retries: further tries of a request after a failure that may pass.
        backoff: seconds that the first retry waits at most; doubled for each further one.
    """

    local = False

    def __init__(
        self,
        *,
        base_url: str,
        api_key: SecretStr,
        model: str,
        timeout: float = 15.0,
        retries: int = 2,
        backoff: float = 0.25,
    ) -> None:
        self.model = model
        self.dimensions = 0
        self.nearness = Nearness(floor=0.0, weight=1.0)
        self._measured = False
        self._http: aiohttp.ClientSession | None = None  # opened by the first call: it belongs to an event loop
        self._url = f"{base_url.rstrip('/')}/embeddings"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._retries = retries
        self._backoff = backoff

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not texts or self._measured:
            return await self._batches(texts)
        vectors = await self._batches([*UNRELATED, *texts])
        self.nearness = measured(vectors[: len(UNRELATED)])
        self._measured = True
        return vectors[len(UNRELATED) :]

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _batches(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):
            vectors += await self._batch(texts[start : start + _BATCH])
        return vectors

    async def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        # An empty text is an error to most endpoints.
        sent = [text[:_LONGEST] or " " for text in texts]
        body = orjson.dumps({"model": self.model, "input": sent, "encoding_format": "float"})
        attempt = 0
        while True:
            try:
                vectors = _vectors(await self._post(body), len(texts))
            except _Failure as failure:
                if failure.may_pass and attempt < self._retries:
                    # Full jitter, so that those who failed together do not come back together.
                    wait = random.uniform(0, self._backoff * 2**attempt)  # noqa: S311  # not a secret
                    await asyncio.sleep(max(wait, failure.retry_after))
                    attempt += 1
                    continue
                tries = f" ({attempt + 1} tries)" if attempt else ""
                raise EmbedderUnavailable(
                    f"the embedding endpoint {self._url} gave no vectors of {self.model!r}: {failure}{tries}",
                    suggestions=(_CHECK,),
                ) from failure
            self.dimensions = len(vectors[0])
            return vectors

    async def _post(self, body: bytes) -> bytes:
        """The body of a successful answer."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        try:
            async with self._http.post(self._url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                if response.status == 200:
                    return answer
                raise _Failure(
                    f"it answered {response.status}{_complaint(response.status, answer)}",
                    may_pass=response.status in _MAY_PASS,
                    retry_after=_seconds(response.headers.get("Retry-After")),
                )
        except TimeoutError as error:
            raise _Failure(f"no answer within {self._timeout.total:g} s", may_pass=True) from error
        except aiohttp.ClientError as error:
            passing = isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError))
            raise _Failure(type(error).__name__, may_pass=passing) from error


class _Failure(Exception):
    """One request failed. `may_pass`: the same one may succeed; `retry_after`: in so many seconds."""

    def __init__(self, reason: str, *, may_pass: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.retry_after = retry_after


def _vectors(answer: bytes, expected: int) -> list[list[float]]:
    """The vectors of an answer in the order of the texts, each of length 1."""
    try:
        rows = sorted(orjson.loads(answer)["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(expected)):
            raise ValueError("not one vector for each text")
        vectors = [_unit(row["embedding"]) for row in rows]
        if not vectors[0] or len({len(vector) for vector in vectors}) != 1:
            raise ValueError("vectors of several lengths, or none")
    except (ValueError, TypeError, KeyError) as error:
        raise _Failure(f"its answer is not what OpenAI's API describes: {str(error)[:200]}") from error
    return vectors


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not math.isfinite(length):
        raise ValueError("a vector is not finite")
    # Six digits are more than half precision can tell, and travel as a third of the text.
    return [round(value / length, 6) for value in vector] if length else [0.0] * len(vector)


def _complaint(status: int, answer: bytes) -> str:
    """What the endpoint says of the request. Not where it refuses the key, of which it may quote a part."""
    if status in (401, 403):
        return " (it refuses the key)"
    try:
        return f": {orjson.loads(answer)['error']['message'][:300]}"
    except (ValueError, TypeError, KeyError):
        return ""


def _seconds(retry_after: str | None) -> float:
    """What a `Retry-After` header asks for, as far as there is patience for it."""
    return min(float(retry_after), _LONGEST_WAIT) if retry_after and retry_after.isdecimal() else 0.0
