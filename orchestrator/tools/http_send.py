"""The tools `http_post` and `http_put`: send something to an address of the public internet.

Both send the call's `Idempotency-Key`, so that a server which knows such keys can tell a repetition. A POST is sent
once: when nobody can tell whether the server has seen it, its outcome is unknown. A PUT puts the same thing in the
same place however often it is sent, so it may be repeated, under the same key.

Redirects are not followed. A server that answers 303 has done what it was asked and says where to read on; one that
answers 307 or 308 has not, and the request would have to be made anew at a place that nobody asked for. Either way
the model sees the status and where it points, and decides.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator

from orchestrator.egress import EgressClient
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.http import LONGEST_REPORT, RequestArguments, ask, report
from orchestrator.tools.results import as_text
from orchestrator.tools.tool import JSONValue, Tool, ToolContext

_KEY: Final = "Idempotency-Key"
_LARGEST_BODY: Final = 1_048_576  # bytes


class SendArguments(RequestArguments):
    """What to send, and where to."""

    body: Annotated[
        dict[str, Any] | list[Any] | str | None,
        Field(description="an object or a list is sent as JSON, a text as it is, as plain text"),
    ] = None

    @field_validator("headers")
    @classmethod
    def _keys_are_ours(cls, headers: dict[str, str]) -> dict[str, str]:
        if any(name.lower() == _KEY.lower() for name in headers):
            raise ValueError(f"the header {_KEY} is set by the tool")
        return headers

    @field_validator("body")
    @classmethod
    def _fits(cls, body: dict[str, Any] | list[Any] | str | None) -> dict[str, Any] | list[Any] | str | None:
        if body is not None and len(as_text(body).encode()) > _LARGEST_BODY:
            raise ValueError(f"the body is longer than {_LARGEST_BODY} bytes")
        return body


class _HttpSend(Tool[SendArguments]):
    method: ClassVar[str]
    arguments = SendArguments
    timeout = 25.0
    retries = 1
    max_result_bytes = LONGEST_REPORT

    def __init__(self, egress: EgressClient) -> None:
        self._egress = egress

    async def run(self, arguments: SendArguments, context: ToolContext) -> JSONValue:
        body = arguments.body
        headers = {_KEY: context.idempotency_key}
        if body is not None and not any(name.lower() == "content-type" for name in arguments.headers):
            headers["Content-Type"] = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
        content = None if body is None else as_text(body).encode()
        try:
            response = await ask(self._egress, self.method, arguments, headers=headers, content=content, follow=False)
        except ToolFailure as failure:
            if self.effect == "once" and failure.reached:
                # The toolbox takes what can't be retried for not done. Here nobody knows.
                raise ToolFailure(failure.message, retryable=True) from None
            raise
        return await report(response, context.vault.redact, location=True)


_WHAT_ALL_DO = (
    "Returns the status, the content type and the text of the answer. Redirects are not followed: `location` says "
    "where they point. Cannot reach private addresses."
)


class HttpPost(_HttpSend):
    """Sends one POST, at most once."""

    name = "http_post"
    method = "POST"
    effect = "once"
    description = (
        "Sends one HTTP POST request to the public internet. It is never sent twice: if nobody can tell whether it "
        f"arrived, the result says so, and you must find out before you send it again. {_WHAT_ALL_DO}"
    )


class HttpPut(_HttpSend):
    """Sends one PUT, which may be repeated under the same key."""

    name = "http_put"
    method = "PUT"
    effect = "idempotent"
    description = (
        "Sends one HTTP PUT request to the public internet, which replaces what is at the URL. It may be sent more "
        f"than once until it is answered, each time with the same idempotency key. {_WHAT_ALL_DO}"
    )
