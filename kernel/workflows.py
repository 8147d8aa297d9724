"""The workflows that a caller may ask for, by name. The graphs behind the names are the orchestrator's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

WorkflowName: TypeAlias = Literal["agent_chat", "echo"]

DEFAULT_WORKFLOW: Final[WorkflowName] = "agent_chat"

WORKFLOWS: Final[Mapping[WorkflowName, str]] = MappingProxyType(
    {
        "agent_chat": "Thinks with the agent's model, uses its tools, delegates to its sub-agents, answers.",
        "echo": "Answers with the input, without a model: for smoke tests and measuring.",
    }
)
