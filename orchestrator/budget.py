"""What a run may still use: tokens and calls, shared by an agent and all its sub-agents, and steps, which each agent
counts for itself. A caller's budget lowers the agent's limits and never raises them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernel.agent_config import AgentLimits


@dataclass(slots=True)
class Budget:
    """Limits and what has been used. None: no limit."""

    max_steps: int
    max_tool_calls: int
    max_tokens: int | None
    timeout_seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    tool_calls: int = 0

    @classmethod
    def of(cls, limits: AgentLimits, asked: dict[str, Any] | None) -> Budget:
        """The lower of the agent's limits and what the caller asked for."""
        asked = asked or {}

        def lower(name: str, limit: int | None) -> int | None:
            wanted: int | None = asked.get(name)
            if wanted is None:
                return limit
            return wanted if limit is None else min(wanted, limit)

        return cls(
            max_steps=lower("max_steps", limits.max_steps) or 1,
            max_tool_calls=lower("max_tool_calls", limits.max_tool_calls) or 0,
            max_tokens=lower("max_tokens", limits.max_tokens),
            timeout_seconds=lower("timeout_seconds", limits.timeout_seconds) or 1,
        )

    def take_call(self) -> bool:
        """Counts one more call of a tool or sub-agent; False, and not counted, if there is none left."""
        if self.tool_calls >= self.max_tool_calls:
            return False
        self.tool_calls += 1
        return True

    def spend_tokens(self, input_tokens: int, output_tokens: int) -> None:
        """Counts one model call."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def exhausted(self, steps: int) -> str | None:
        """Which limit an agent that has made `steps` model calls has reached, as a finish reason; None if none."""
        if steps >= self.max_steps:
            return "step_limit"
        if self.max_tokens is not None and self.input_tokens + self.output_tokens >= self.max_tokens:
            return "token_limit"
        return None
