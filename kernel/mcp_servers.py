"""MCP servers that the operator configures: `LONGHAUL_MCP_SERVERS`, a JSON object of servers by name.

A definition refers to one by that name, so callers can use a program on the worker's machine without naming it. Values
of `env` and `headers` are secrets.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, SecretStr, Tag, field_validator

_NOT_AN_ENTRY = 'must be either {"command": ["program", …], "env"?: {…}} or {"url": …, "headers"?: {…}}'


class McpProgram(BaseModel):
    """A server that workers start themselves and talk to over stdin and stdout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: tuple[Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")], ...] = Field(
        min_length=1, max_length=256
    )
    env: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], SecretStr] = {}


class McpEndpoint(BaseModel):
    """A server at a URL of the operator's choice, which may be a private address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(min_length=1, max_length=4_096)
    headers: dict[str, SecretStr] = {}

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("must be an absolute http or https URL without a password")
        return url


def _kind(value: Any) -> str | None:
    if isinstance(value, McpProgram) or (isinstance(value, dict) and "command" in value):
        return "<program>"
    if isinstance(value, McpEndpoint) or (isinstance(value, dict) and "url" in value):
        return "<url>"
    return None


McpServerSettings: TypeAlias = Annotated[
    Annotated[McpProgram, Tag("<program>")] | Annotated[McpEndpoint, Tag("<url>")],
    Discriminator(_kind, custom_error_type="mcp_server", custom_error_message=_NOT_AN_ENTRY),
]
"""One configured server."""

ServerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
