"""Faults of a transport, on their way through the mcp package to the call that they concern.

The package carries an error from its transport to the waiting call as a JSON-RPC error, which holds a code and a text.
What went wrong, and whether the server may have seen the call, is left here under a random token, and the token travels
as that text. No server can guess one.
"""

from __future__ import annotations

import secrets
from typing import Final

from orchestrator.tools.errors import ToolFailure

_MOST: Final = 256


class Faults:
    """The faults of one session that no call has taken yet; the oldest are dropped."""

    def __init__(self) -> None:
        self._kept: dict[str, ToolFailure] = {}

    def leave(self, failure: ToolFailure) -> str:
        """The text that the JSON-RPC error must end with."""
        token = f"fault-{secrets.token_hex(12)}"
        self._kept[token] = failure
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return token

    def take(self, text: str) -> ToolFailure | None:
        """What was left, if the text of this error ends with a token."""
        return self._kept.pop(text.rpartition(" ")[2], None)
