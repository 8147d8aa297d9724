"""HTTP tools that callers define: one request each, filled in with the arguments of a call.

A request that carries a secret is redirected within its own origin only: whoever the server points to next gets neither
the request nor the secret. What is not a read is not redirected at all, as with `http_post`. Any answer is the result,
a refusal too: the model sees the status and decides. Answers that say "not now" are failures, which the toolbox repeats
where the tool's effect class allows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from kernel.tool_definitions import AuthConfig, HttpTool
from orchestrator.egress import EgressClient, EgressResponse, Follow
from orchestrator.kit import KitScope
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.http import about, report, send
from orchestrator.tools.results import clean
from orchestrator.tools.templates import RequestTemplate
from orchestrator.tools.tool import JSONValue, SchemaTool, ToolContext

LONGEST_CALL: Final = 300.0
"""Seconds that a definition may ask for."""

_KEY: Final = "Idempotency-Key"
_NOT_NOW: Final = (429, 502, 503, 504)
_LOST: Final = (502, 504)
"""A gateway got no answer: what is behind it may have done what was asked."""
_LEAST_READ: Final = 524_288
_SHOWN_OF_FAILURES: Final = 4_096
_SECONDS_TO_SAY_SO: Final = 2.0
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\xa0-\xff]{1,8400}")


class DefinedHttp(SchemaTool):
    """One HTTP tool of a caller.

    Args:
        egress: must allow as many seconds as the definition.
    """

    def __init__(self, definition: HttpTool, egress: EgressClient) -> None:
        super().__init__(definition.parameter_schema)
        execution = definition.execution_config
        self.name = definition.name
        self.description = definition.description
        self.effect = definition.effect_class
        self.timeout = execution.timeout + _SECONDS_TO_SAY_SO  # the request's own end says more
        self.retries = definition.retries
        self.max_result_bytes = definition.max_result_bytes
        self._egress = egress
        self._method = execution.method
        self._seconds = execution.timeout
        self._auth = execution.auth_config
        self._template = RequestTemplate(definition)
        self._host = urlsplit(execution.url).netloc

    def parse(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        parsed = super().parse(given)
        self._template.fill(parsed)
        return parsed

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> JSONValue:
        request = self._template.fill(arguments)
        headers = request.headers
        if self.effect != "read" and not any(name.lower() == _KEY.lower() for name in headers):
            headers[_KEY] = context.idempotency_key
        if self._auth is not None:
            value = await _credential(self._auth, context)
            headers = {name: kept for name, kept in headers.items() if name.lower() != self._auth.target.lower()}
            headers[self._auth.target] = value
        try:
            response = await send(
                self._egress,
                self._method,
                request.url,
                headers=headers,
                content=request.content,
                max_bytes=max(_LEAST_READ, self.max_result_bytes),
                timeout=self._seconds,
                follow=self._follow(),
            )
        except ToolFailure as failure:
            if self.effect == "once" and failure.reached:
                # The toolbox takes what can't be retried for not done. Here nobody knows.
                raise ToolFailure(failure.message, retryable=True) from None
            raise
        if response.status in _NOT_NOW and (self.effect != "once" or response.status in _LOST):
            raise await self._not_now(response, context)
        if self._method == "HEAD":
            return about(response, context.vault.redact)
        return await report(response, context.vault.redact, limit=self.max_result_bytes, location=True)

    def _follow(self) -> Follow:
        if self._method not in ("GET", "HEAD"):
            return False
        return "same origin" if self._auth is not None else True

    async def _not_now(self, response: EgressResponse, context: ToolContext) -> ToolFailure:
        told = await report(response, context.vault.redact, limit=_SHOWN_OF_FAILURES)
        wait = response.headers.get("Retry-After", "")
        lines = [f"{self._host} answered {response.status}."]
        if re.fullmatch(r"\d{1,6}", wait):
            lines.append(f"It asks to wait {wait} s.")
        lines.append(clean(str(told["text"])))
        return ToolFailure(" ".join(lines).strip(), retryable=True)


class HttpTools:
    """Makes the tools of definitions whose type is `http`: a `Maker`."""

    def __init__(self, egress: EgressClient) -> None:
        self._egress = egress

    async def __call__(self, definition: HttpTool, scope: KitScope) -> Sequence[DefinedHttp]:
        """The one tool of a definition."""
        if (auth := definition.execution_config.auth_config) is not None:
            scope.vault.expect(auth.source)
        return [DefinedHttp(definition, self._egress)]


async def _credential(auth: AuthConfig, context: ToolContext) -> str:
    secret = await context.vault.reveal(auth.source)
    value = f"{auth.prefix}{secret}"
    if not _HEADER_VALUE.fullmatch(value):
        raise ToolFailure(
            f"The secret {auth.source!r} can't be sent in a header: it has line breaks or other characters that no "
            "header may hold. Whoever configured this tool must set it anew.",
            reached=False,
        )
    return value
