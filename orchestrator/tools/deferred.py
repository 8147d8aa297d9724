"""Tools whose results come from outside: from a person, or from the caller's own program.

They are checked like any other tool and never run. ACT asks for what they want, and the run waits for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from kernel.approvals import DAY
from orchestrator.tools.tool import JSONValue, Tool, ToolContext

A_contra = TypeVar("A_contra")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call waits for. `schema` is what the answer must fit, `max_bytes` how much JSON it may be."""

    prompt: str
    schema: Mapping[str, Any] | None
    max_bytes: int
    expires_seconds: float = DAY


class DeferredTool(Tool[A_contra]):
    """One whose `kind` says who answers: a person a `question`, the caller a `client_tool`."""

    kind: Literal["question", "client_tool"]

    @abstractmethod
    def wanted(self, arguments: A_contra) -> Wanted:
        """What a call with these arguments waits for."""

    async def run(self, arguments: A_contra, context: ToolContext) -> JSONValue:
        raise RuntimeError(f"the tool {self.name!r} is answered from outside")
