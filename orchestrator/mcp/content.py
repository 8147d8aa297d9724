"""What MCP servers say of their tools, and what calls of them bring, in our terms. Needs the mcp package.

Texts are joined, structured content is JSON. Images, sound and other binary content are only mentioned, with their
size: models read text here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import mcp_types as types
import orjson

from kernel.effects import EffectClass
from orchestrator.mcp.listing import ListedTool
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.results import as_text, clean, clip
from orchestrator.tools.tool import JSONValue

_DESCRIPTION_BYTES: Final = 4_000


def listed(tool: types.Tool) -> ListedTool:
    """A tool as its server describes it."""
    hints = tool.annotations
    hinted: EffectClass = "once"
    if hints is not None and hints.read_only_hint:
        hinted = "read"
    elif hints is not None and hints.idempotent_hint:
        hinted = "idempotent"
    description = clip(clean(tool.description or tool.title or tool.name), _DESCRIPTION_BYTES)
    return ListedTool(tool.name, description, tool.input_schema, hinted)


def result(server: str, answer: types.CallToolResult) -> JSONValue:
    """The result of a call.

    Raises:
        ToolFailure: the server says that the tool failed.
    """
    text = "\n".join(_texts(answer.content))
    structured: Any = answer.structured_content
    if answer.is_error:
        said = text or (as_text(structured) if structured is not None else "It did not say why.")
        raise ToolFailure(f"The tool of the MCP server {server!r} failed: {said}")
    if structured is None or structured == {"result": text}:
        return text
    # Servers are to repeat structured content as text, for clients that know only texts.
    if not text or _says(text, structured):
        return structured  # type: ignore[no-any-return]
    return f"{text}\n{as_text(structured)}"


def _texts(content: list[types.ContentBlock]) -> Iterator[str]:
    for block in content:
        match block:
            case types.TextContent(text=text):
                yield text
            case types.ImageContent(data=data, mime_type=kind):
                yield f"[image, {kind[:100]}, {_bytes(data)} bytes: not shown]"
            case types.AudioContent(data=data, mime_type=kind):
                yield f"[sound, {kind[:100]}, {_bytes(data)} bytes: not shown]"
            case types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, text=text)):
                yield f"[{uri}]\n{text}"
            case types.EmbeddedResource(resource=types.BlobResourceContents(uri=uri, blob=data)):
                yield f"[{uri}, binary, {_bytes(data)} bytes: not shown]"
            case types.ResourceLink(uri=uri, name=name):
                yield f"[link to {name}: {uri}]"


def _bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")


def _says(text: str, structured: Any) -> bool:
    try:
        said = orjson.loads(text)
    except ValueError:
        return False
    # What is no object is wrapped, because structured content must be one.
    return bool(said == structured or structured == {"result": said})
