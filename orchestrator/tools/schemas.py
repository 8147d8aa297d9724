"""How a tool is described to a model: the OpenAI function-tool format."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from orchestrator.tools.tool import Tool


class _WithoutTitles(GenerateJsonSchema):
    """pydantic adds a title to every field, which says again what the field's name says and costs tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def function_schema(tool: Tool[Any]) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "description", "parameters"}}`."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": _parameters(tool.arguments),
        },
    }


def _parameters(arguments: type[BaseModel]) -> JsonSchemaValue:
    schema = arguments.model_json_schema(schema_generator=_WithoutTitles)
    for name in ("title", "description"):  # the class's name and docstring are not for the model
        schema.pop(name, None)
    schema.setdefault("properties", {})
    return schema
