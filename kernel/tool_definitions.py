"""Tools that callers define as data: an HTTP call, a call that the caller makes itself, the tools of an MCP server.

The same shapes stand in an agent's configuration, in a skill and in a run's request. They name secrets and never hold
them. What they become is the orchestrator's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from kernel.effects import DELEGATE, EffectClass
from kernel.json_schema import AnySchema, ObjectSchema

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$", description="of the run or of the org")]

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]{0,63})\}")
"""What stands for an argument in the texts of a definition."""

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
# Set by the transport, or able to change what a request is.
_HEADERS_KEPT: Final = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "proxy-authorization")
)


class Definition(BaseModel):
    """Base of what callers configure: read strictly, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AuthConfig(Definition):
    """Fills the request header `target` from the secret `source`: the run's own of that name, else the org's."""

    source: SecretName
    target: str = Field(default="Authorization", description="request header")
    prefix: str = Field(default="", max_length=40, description='put before the secret, such as "Bearer "')

    @field_validator("target")
    @classmethod
    def _a_header(cls, target: str) -> str:
        return _header_name(target)


class HttpExecution(Definition):
    """The request. `{name}` in the URL, in header values and in the body's texts stands for an argument of the call.

    Arguments that none of them names are sent as query parameters (GET, HEAD, DELETE) or, where there is no body
    template, as the JSON body.
    """

    url: str = Field(min_length=1, max_length=4_096)
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: dict[str, Annotated[str, Field(max_length=4_096)]] = Field(default={}, max_length=30)
    body: Any = Field(default=None, description="JSON, in whose texts arguments are filled in")
    timeout: float = Field(default=30.0, gt=0, le=300, description="seconds for one attempt")
    auth_config: AuthConfig | None = None

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "{" in parts.netloc or parts.username:
            raise ValueError("must be an absolute http or https URL whose host is fixed and without a password")
        return url

    @field_validator("headers")
    @classmethod
    def _may_be_set(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            _header_name(name)
            if not value.isprintable():
                raise ValueError(f"header {name}: holds characters that no header may have")
        return headers


class _Tool(Definition):
    name: Slug
    description: str = Field(min_length=1, max_length=4_000, description="for the model: what it does, when to use it")

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == DELEGATE:
            raise ValueError(f"{DELEGATE!r} is how models hand over tasks: choose another name")
        return name


class HttpTool(_Tool):
    """A tool that is one HTTP request.

    Without `effect`, GET and HEAD are reads, PUT and DELETE idempotent, POST and PATCH made once.
    """

    type: Literal["http"]
    parameter_schema: ObjectSchema = {"type": "object", "properties": {}}
    execution_config: HttpExecution
    effect: EffectClass | None = None
    retries: int = Field(default=1, ge=0, le=5, description="further attempts after a failure that may pass")
    max_result_bytes: int = Field(default=65_536, ge=256, le=1_048_576)

    @model_validator(mode="after")
    def _all_are_parameters(self) -> HttpTool:
        execution = self.execution_config
        named = named_in([execution.url, *execution.headers.values()])
        if missing := named.difference(self.parameter_schema.get("properties") or ()):
            shown = ", ".join(f"{{{name}}}" for name in sorted(missing))
            raise ValueError(f"execution_config names {shown}, which the properties of parameter_schema lack")
        return self

    @property
    def effect_class(self) -> EffectClass:
        """What was declared, else what the method says."""
        if self.effect is not None:
            return self.effect
        match self.execution_config.method:
            case "GET" | "HEAD":
                return "read"
            case "PUT" | "DELETE":
                return "idempotent"
            case _:
                return "once"


class ClientTool(_Tool):
    """A tool of the caller's own: the run waits until the caller has posted the result."""

    type: Literal["client"]
    parameter_schema: ObjectSchema = {"type": "object", "properties": {}}
    result_schema: AnySchema | None = Field(default=None, description="what a result must look like")
    expires_seconds: int = Field(default=86_400, ge=1, le=2_592_000, description="then the model is told so")
    max_result_bytes: int = Field(default=65_536, ge=256, le=1_048_576)


class McpServer(Definition):
    """The tools of an MCP server, which the model sees as `<name>_<tool>`.

    Either `url` (streamable HTTP), or `server`: one that the operator configured under that name. Tools are taken as
    made `once` unless the server says that they only read or may be repeated, or `effects` says so.
    """

    type: Literal["mcp"]
    name: Slug
    url: str | None = Field(default=None, min_length=1, max_length=4_096)
    server: Slug | None = None
    auth_config: AuthConfig | None = None
    tools: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        default=None, max_length=128, description="only these of its tools"
    )
    effects: dict[str, EffectClass] = Field(default={}, max_length=128)
    timeout: float = Field(default=60.0, gt=0, le=600, description="seconds for one call")
    max_result_bytes: int = Field(default=65_536, ge=256, le=1_048_576)

    @model_validator(mode="after")
    def _one_address(self) -> McpServer:
        if (self.url is None) == (self.server is None):
            raise ValueError("needs either url or server")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                raise ValueError("url must be an absolute http or https URL without a password")
        return self


ToolDefinition: TypeAlias = HttpTool | ClientTool | McpServer


def _kind(value: Any) -> str | None:
    """Which branch is meant. The tags' brackets keep them out of the paths of errors."""
    if isinstance(value, str):
        return "<name>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("http", "client", "mcp") else None


ToolEntry: TypeAlias = Annotated[
    Annotated[Slug, Tag("<name>")]
    | Annotated[HttpTool, Tag("<http>")]
    | Annotated[ClientTool, Tag("<client>")]
    | Annotated[McpServer, Tag("<mcp>")],
    Discriminator(
        _kind,
        custom_error_type="tool_kind",
        custom_error_message="must be a tool's name, or a definition whose type is http, client or mcp",
    ),
]
"""A tool by its name, or defined on the spot."""


def each_once(tools: list[ToolEntry]) -> list[ToolEntry]:
    """`tools` if no two have one name.

    Raises:
        ValueError: two have.
    """
    names = [tool if isinstance(tool, str) else tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise ValueError("a tool may be named only once")
    return tools


ToolEntries: TypeAlias = Annotated[
    list[ToolEntry],
    AfterValidator(each_once),
    Field(max_length=64, description="names of tools, or definitions"),
]


def named_in(templates: Iterable[str]) -> set[str]:
    """The arguments that these texts stand for."""
    return {name for template in templates for name in PLACEHOLDER.findall(template)}


def _header_name(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{name[:100]!r} is no header name")
    if name.lower() in _HEADERS_KEPT:
        raise ValueError(f"the header {name} can't be set")
    return name
