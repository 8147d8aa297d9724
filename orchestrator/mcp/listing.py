"""What a server offers and what it is told about calls, free of the mcp package's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kernel.effects import EffectClass
from orchestrator.tools.tool import Tool

EFFECT: Final = "longhaul/effect"
KEY: Final = "longhaul/idempotencyKey"
"""Fields of a call's `_meta`: its effect class, and what it can be known again by."""


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as its server describes it. `hinted` is the effect class that its annotations speak of."""

    name: str
    description: str
    schema: Mapping[str, Any]
    hinted: EffectClass


@dataclass(slots=True)
class Listing:
    """The tools of a server, as read at `at` (the loop's clock, seconds).

    `made` are the tools of this process made of them, by definition: their schemas are compiled once.
    """

    tools: Sequence[ListedTool]
    at: float
    made: dict[str, Sequence[Tool[Any]]] = field(default_factory=dict)
