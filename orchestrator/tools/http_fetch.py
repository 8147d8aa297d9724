"""The tool `http_fetch`: reads one address of the public internet, as text that a model can use."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.egress import EgressClient
from orchestrator.tools.http import LONGEST_REPORT, RequestArguments, about, ask, report
from orchestrator.tools.tool import JSONValue, Tool, ToolContext


class FetchArguments(RequestArguments):
    """What to fetch."""

    method: Annotated[Literal["GET", "HEAD"], Field(description="HEAD: status and headers only")] = "GET"


class HttpFetch(Tool[FetchArguments]):
    """Fetches over the egress client, which keeps it off private addresses and within its caps."""

    name = "http_fetch"
    description = (
        "Fetches one http or https URL from the public internet and returns its status, content type, final URL "
        "after redirects, and text. HTML is reduced to readable text with links as [text](url); binary content is "
        "not shown. Does not run JavaScript, cannot log in, and cannot reach private addresses."
    )
    arguments = FetchArguments
    effect = "read"
    timeout = 25.0
    retries = 1
    max_result_bytes = LONGEST_REPORT

    def __init__(self, egress: EgressClient) -> None:
        self._egress = egress

    async def run(self, arguments: FetchArguments, context: ToolContext) -> JSONValue:
        response = await ask(self._egress, arguments.method, arguments)
        if arguments.method == "GET":
            return await report(response, context.vault.redact)
        length = response.headers.get("Content-Length", "")
        known = {"content_length": int(length)} if re.fullmatch(r"\d{1,18}", length) else {}
        return about(response, context.vault.redact) | known
