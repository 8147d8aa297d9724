"""Errors of tools. The first is for the model, the second for whoever wrote the agent."""

from __future__ import annotations

from kernel.errors import LonghaulError


class ToolFailure(Exception):
    """A tool could not do what was asked. The only error a tool raises on purpose.

    `message` goes to the model word for word: plain language, what went wrong and what to do instead, no secrets.
    `retryable`: the same call may succeed in a moment.
    `reached`: the outside may have seen the call. False only where nothing can have left this process; a tool
    whose effect is `once` is tried again only then.
    """

    def __init__(self, message: str, *, retryable: bool = False, reached: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.reached = reached


class UnknownTool(LonghaulError):
    """An agent names tools that this process does not have."""

    code = "unknown_tool"


class BadKit(LonghaulError):
    """An agent's tools can't be put together as they are defined."""

    code = "bad_tools"
