"""JSON Schemas that strangers write: what a tool takes, what an answer must look like.

Draft 2020-12 unless the schema says otherwise. Nothing outside the schema is ever fetched, and patterns are matched in
linear time, so that neither a schema nor a value can reach out or stall a process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import jsonschema_rs
from pydantic import AfterValidator, Field

MAX_BYTES: Final = 65_536
_MOST_DEPTH: Final = 32
_MOST_SHOWN: Final = 10
_PATTERNS: Final = jsonschema_rs.RegexOptions(size_limit=1_000_000, dfa_size_limit=1_000_000)


class SchemaError(ValueError):
    """The schema itself can't be used. The text says where and why."""


class Schema:
    """A compiled schema. Safe to share between tasks.

    Raises:
        SchemaError: it is no JSON Schema, too large, nested too deep, or refers to something outside itself.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        _check_size(schema)
        try:
            self._validator = jsonschema_rs.validator_for(
                dict(schema), retriever=_nothing_outside, pattern_options=_PATTERNS, validate_formats=True
            )
        except jsonschema_rs.ValidationError as error:
            where = "/".join(str(part) for part in error.instance_path) or "its top"
            raise SchemaError(f"not a JSON Schema: at {where}: {error.message[:300]}") from None
        except ValueError as error:  # a reference that can't be resolved
            raise SchemaError(f"not a usable JSON Schema: {str(error)[:300]}") from None

    def problems(self, value: Any) -> list[str]:
        """What is wrong with `value`, one line each, the first ten; empty if it fits."""
        lines: list[str] = []
        for error in self._validator.iter_errors(value):
            where = ".".join(str(part)[:64] for part in error.instance_path)
            lines.append(f"{where}: {error.message[:300]}" if where else error.message[:300])
            if len(lines) == _MOST_SHOWN:
                break
        return lines

    def fits(self, value: Any) -> bool:
        """Whether `value` is valid."""
        return bool(self._validator.is_valid(value))


def _nothing_outside(uri: str) -> Any:
    raise ValueError(f"refers to {uri[:200]!r}: only references within the schema are resolved")


def _check_size(schema: Any) -> None:
    size, level, depth = 0, [schema], 0
    while level:
        if depth > _MOST_DEPTH:
            raise SchemaError(f"must not be nested more than {_MOST_DEPTH} levels deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                size += sum(len(str(key)) + 4 for key in item)
                below += item.values()
            elif isinstance(item, list):
                size += 2 * len(item)
                below += item
            else:
                size += len(str(item))
                _check_number(item)
        if size > MAX_BYTES:
            raise SchemaError(f"must not be larger than {MAX_BYTES} bytes")
        level, depth = below, depth + 1


def _check_number(item: Any) -> None:
    """Others, and what keeps the schema, read no larger numbers."""
    if isinstance(item, int) and not -(2**63) <= item < 2**63:
        raise SchemaError("whole numbers must fit into 64 bits")
    if isinstance(item, float) and not math.isfinite(item):
        raise SchemaError("numbers must be finite")


def _usable(schema: dict[str, Any]) -> dict[str, Any]:
    Schema(schema)
    return schema


def _of_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") != "object":
        raise SchemaError('must have "type": "object" at its top')
    return _usable(schema)


AnySchema = Annotated[
    dict[str, Any], AfterValidator(_usable), Field(description="JSON Schema; at most 64 KB, without outside references")
]
ObjectSchema = Annotated[
    dict[str, Any], AfterValidator(_of_object), Field(description='JSON Schema with "type": "object"; at most 64 KB')
]
