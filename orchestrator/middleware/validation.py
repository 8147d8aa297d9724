"""`validation`: refuses inputs that are too long, or that hold what an operator doesn't want said to a model.

The texts are looked for as they stand, without regard to case and to runs of white space: that takes linear time
whatever is sent.
"""

from __future__ import annotations

from orchestrator.host import PluginHost
from orchestrator.middleware.calls import RunCall, RunOutcome
from orchestrator.middleware.errors import Refused
from orchestrator.middleware.middleware import Middleware, RunNext


class Validation(Middleware):
    """`LONGHAUL_INPUT_MOST` and `LONGHAUL_INPUT_DENY`."""

    def __init__(self, host: PluginHost) -> None:
        self._most = host.settings.input_most
        self._denied = tuple(_plain(text) for text in host.settings.input_deny)

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        if len(call.input) > self._most:
            raise Refused(
                "input_too_long",
                f"The input has {len(call.input)} characters; {self._most} are allowed here.",
                suggestions=("shorten it, or send it in parts",),
            )
        if self._denied:
            plain = _plain(call.input)
            if any(text in plain for text in self._denied):
                raise Refused(
                    "input_denied",
                    "The input holds a text that is not allowed here.",
                    suggestions=("say it in other words, or ask the operator what is not allowed",),
                )
        return await call_next(call)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
