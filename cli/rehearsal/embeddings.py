"""Embeddings without a model: words and letter triples hashed into a few dimensions (the hashing trick).

Deterministic over processes and releases. Texts that share words or word stems are near each other, which is
all that a demo or a test of the endpoint needs.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from typing import Any
from zlib import crc32

DIMENSIONS = 64
MAX_DIMENSIONS = 4096

_WORD = re.compile(r"[一-鿿]|[^\W_]+")


def embed(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A vector of length 1, or of zeros for a text without words."""
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()):
        padded = f"<{word}>"
        for piece, weight in [(word, 1.0), *((padded[i : i + 3], 0.3) for i in range(len(padded) - 2))]:
            hashed = crc32(piece.encode())
            vector[hashed % dimensions] += weight if hashed & 0x8000_0000 else -weight
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector


def answer(body: Any) -> dict[str, Any]:
    """The answer to an embeddings request: `input` a text or texts, `dimensions`, `encoding_format`.

    Raises:
        ValueError: says which field is wrong.
    """
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("input must be a text or a list of texts")
    dimensions = DIMENSIONS if body.get("dimensions") is None else body["dimensions"]
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"dimensions must be between 1 and {MAX_DIMENSIONS}")
    vectors: list[Any] = [embed(text, dimensions) for text in texts]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{dimensions}f", *v)).decode() for v in vectors]
    count = sum(len(text) // 4 + 1 for text in texts)
    return {
        "object": "list",
        "model": body.get("model") or "rehearsal",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
