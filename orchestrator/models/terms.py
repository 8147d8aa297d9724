"""What an endpoint turned out not to take of a request, so that it is not sent there again.

OpenAI-compatible endpoints differ in what they accept. A call that is refused because of a field of ours, which the
caller did not ask for, is made again without it.
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import ModelRefused
from orchestrator.models.provider import ResponseFormat

_MOST_FORMATS = 64
_CONCEDED = ("max_completion_tokens", "stream_options")
_REFUSING = (400, 422)


class Terms:
    """The terms of one model on one endpoint."""

    __slots__ = ("_formats", "_without")

    def __init__(self) -> None:
        self._without: set[str] = set()
        self._formats: set[bytes] = set()

    def apply(self, payload: dict[str, Any]) -> None:
        """Takes out of a request what is refused."""
        if "max_completion_tokens" in self._without and "max_completion_tokens" in payload:
            payload["max_tokens"] = payload.pop("max_completion_tokens")  # the older name
        if "stream_options" in self._without:
            payload.pop("stream_options", None)

    def concede(self, error: ModelRefused) -> bool:
        """Whether the call may succeed without something that the refusal names. Then it is left out from now on."""
        if error.status not in _REFUSING:
            return False
        named = {name for name in _CONCEDED if name in error.about} - self._without
        self._without |= named
        return bool(named)

    def takes(self, response_format: ResponseFormat) -> bool:
        """Whether the field `response_format` is worth a try for this schema."""
        return response_format.digest not in self._formats

    @staticmethod
    def may_be_the_format(error: ModelRefused) -> bool:
        """Whether the endpoint may have refused the field. Few say so clearly: only a second try tells."""
        return error.status in _REFUSING

    def not_taken(self, response_format: ResponseFormat) -> None:
        """The field was refused where words were not."""
        if len(self._formats) >= _MOST_FORMATS:
            self._formats.clear()
        self._formats.add(response_format.digest)
