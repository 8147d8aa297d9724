"""Names of a server's tools as models call them: `<server>_<tool>`, 1 to 64 of `a-z A-Z 0-9 _ -`."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

_LONGEST: Final = 64
_DIGEST: Final = 8
_NOT_ALLOWED: Final = re.compile(r"[^A-Za-z0-9_-]")


def names(server: str, tools: Sequence[str]) -> list[str]:
    """A name for each of these different tools, in their order. It depends on the tools' own names alone, so that
    approval policies can rely on it: characters that are not allowed become `_`, and a name that is too long, or that
    another tool would get too, ends in a digest of the tool's own."""
    plain = [_NOT_ALLOWED.sub("_", f"{server}_{tool}") for tool in tools]
    times = Counter(plain)
    return [
        name if len(name) <= _LONGEST and (times[name] == 1 or name == f"{server}_{tool}") else _digested(name, tool)
        for name, tool in zip(plain, tools, strict=True)
    ]


def _digested(name: str, tool: str) -> str:
    digest = hashlib.sha256(tool.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{name[: _LONGEST - _DIGEST - 1]}_{digest}"
