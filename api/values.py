"""The kinds of values that requests are made of, bounded. Bodies are read strictly: no number from a text."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_MOST_DEPTH: Final = 8
_BIGINT: Final = 2**63


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Query(BaseModel):
    """A request's query parameters, read from texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class View(BaseModel):
    """An answer's body. Answers are built as plain dicts; this is what the document says of them, and it is completed
    when the document is made."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


def bounded_json(value: Any, *, most_bytes: int) -> Any:
    """`value` if its JSON is at most so many bytes, 8 levels deep and without numbers that others can't read.

    Raises:
        ValueError: says which bound it breaks.
    """
    if _weight(value, 0) > most_bytes:
        raise ValueError(f"must not be larger than {most_bytes} bytes of JSON")
    return value


def _weight(value: Any, depth: int) -> int:
    if depth > _MOST_DEPTH:
        raise ValueError(f"must not be nested more than {_MOST_DEPTH} levels deep")
    if isinstance(value, str):
        return len(value.encode()) + 2
    if isinstance(value, dict):
        return 2 + sum(len(key.encode()) + 4 + _weight(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return 2 + sum(1 + _weight(item, depth + 1) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    if isinstance(value, int) and not -_BIGINT <= value < _BIGINT:
        raise ValueError("whole numbers must fit into 64 bits")
    return len(str(value))


def _small(value: dict[str, Any]) -> dict[str, Any]:
    bounded_json(value, most_bytes=16_384)
    return value


def _medium(value: dict[str, Any]) -> dict[str, Any]:
    bounded_json(value, most_bytes=65_536)
    return value


Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_small),
    Field(description="yours, kept and given back; at most 16 KB and 8 levels"),
]
Variables = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=100)], Any],
    AfterValidator(_medium),
    Field(description="named values for the workflow; at most 64 KB and 8 levels"),
]
AgentId = Annotated[str, Field(pattern=r"^agt_[0-9a-f]{32}$")]
SessionId = Annotated[str, Field(pattern=r"^ses_[0-9a-f]{32}$")]
RunId = Annotated[str, Field(pattern=r"^run_[0-9a-f]{32}$")]
