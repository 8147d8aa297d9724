"""What a layer can say instead of an outcome."""

from __future__ import annotations

from collections.abc import Sequence

from kernel.errors import LonghaulError


class Stopped(LonghaulError):
    """A layer let something go no further."""


class Refused(Stopped):
    """A layer refuses a run, a model call or a tool call. For a run and a model call the run fails with `code` and
    `message`; for a tool call the model is told `message`, and goes on."""

    def __init__(self, code: str, message: str, *, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.code = code


class MiddlewareFailed(Stopped):
    """A layer broke. Says which one, and nothing of why: that is in the worker's log."""

    code = "middleware_failed"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The middleware {name!r} failed.",
            suggestions=(
                "send the request again",
                "if it fails again, give the operator this run's id: the workers' log has the cause",
            ),
        )
        self.name = name
