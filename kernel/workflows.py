"""The workflows that a caller may ask for, by name. The graphs behind the names are the orchestrator's, or those of
plug-ins, whose names are known from their metadata: nothing is imported to tell whether there is one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from kernel.plugins import BadPlugin, plugins

DEFAULT_WORKFLOW: Final = "agent_chat"

BUILT_IN_WORKFLOWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agent_chat": "Thinks with the agent's model, uses its tools, delegates to its sub-agents, answers.",
        "echo": "Answers with the input, without a model: for smoke tests and measuring.",
    }
)


def _all_workflows() -> dict[str, str]:
    try:
        found = plugins("workflows")
    except BadPlugin:  # workers refuse to start, and say why
        found = {}
    plugged_in = {name: f"From {plugin.origin}." for name, plugin in found.items()}
    return plugged_in | dict(BUILT_IN_WORKFLOWS)


WORKFLOWS: Final[Mapping[str, str]] = MappingProxyType(_all_workflows())
"""All of them with a line about each. What is installed does not change while a process runs."""

if TYPE_CHECKING:
    WorkflowName: TypeAlias = str
else:
    WorkflowName = Literal[tuple(WORKFLOWS)]
