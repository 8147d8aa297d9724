"""What the states of one agent in one run work with; handed to them by the graph's runtime, never checkpointed."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kernel.agent_config import MemoryConfig, ModelChoice, SubAgent
from kernel.approval_policy import ApprovalPolicy
from kernel.leases import ClaimedRun
from kernel.prices import Prices
from kernel.runlog import NewStep, RunLog
from memory.port import Memory
from memory.records import Scope
from orchestrator.approvals import Approvals
from orchestrator.brake import Brake
from orchestrator.budget import Budget
from orchestrator.kit import Kit
from orchestrator.middleware.layers import Layers
from orchestrator.models.factory import Models
from orchestrator.state import Call, GraphState
from orchestrator.tools.tool import ToolContext, Vault
from orchestrator.transcript import Transcript
from orchestrator.window.context import ContextWindow


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the run's agent or one of its sub-agents. `approvals` are policies by the names of tools."""

    name: str
    instructions: str
    model: ModelChoice
    kit: Kit
    sub_agents: Sequence[SubAgent]
    memory: MemoryConfig
    approvals: Mapping[str, ApprovalPolicy] = field(default_factory=dict)
    response_schema: Mapping[str, Any] | None = None


@dataclass(slots=True)
class RunContext:
    """`path` is empty for the run's own agent, `researcher:2/…` for a sub-agent. `depth` counts delegations."""

    run: ClaimedRun
    log: RunLog
    actor: Actor
    path: str
    depth: int
    max_depth: int
    max_parallel_agents: int
    brake: Brake
    approvals: Approvals
    budget: Budget
    transcript: Transcript
    window: ContextWindow
    models: Models
    memory: Memory
    vault: Vault
    prices: Prices
    run_child: Callable[[RunContext, Call, SubAgent, int], Awaitable[tuple[Literal["ok", "error"], str]]]
    layers: Layers | None = None  # none where no middleware is configured

    def step_id(self, state: GraphState, name: str) -> str:
        """The same on every retry of the step, different for all other steps of the run."""
        step = f"{state['round']}-{name.lower()}"
        return f"{self.path}/{step}" if self.path else step

    def child_path(self, name: str, call: Call) -> str:
        """The path of a sub-agent. Positions are unique in a transcript; a model may use a call id in two steps."""
        path = f"{name}:{call['position']}"
        return f"{self.path}/{path}" if self.path else path

    def enter(self, state: GraphState, name: str) -> str:
        """Says that a step begins; returns its id."""
        step_id = self.step_id(state, name)
        self.log.say("state_entered", {"state": name, "step_id": step_id, "path": self.path}, urgent=False)
        return step_id

    def leave(self, step_id: str, name: str, seconds: float) -> None:
        """Records that a step is finished; committed with its checkpoint."""
        self.log.record_step(NewStep(step_id, self.path, name, seconds))

    def named(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Event fields with the path of a sub-agent."""
        return fields | {"path": self.path} if self.path else fields

    def scope(self) -> Scope:
        """Whose memory is read and written."""
        run = self.run
        return Scope(run.org_id, run.user_id, run.agent_id, run.session_id, run.id)

    def tool_context(self, step_id: str, call_id: str) -> ToolContext:
        """On whose behalf a tool is called."""
        run = self.run
        return ToolContext(
            org_id=run.org_id,
            user_id=run.user_id,
            agent_id=run.agent_id,
            session_id=run.session_id,
            run_id=run.id,
            call_id=call_id,
            idempotency_key=_idempotency_key(run.id, step_id, call_id),
            vault=self.vault,
        )


_LONGEST_KEY: Final = 255  # characters; what services that take such a key commonly allow


def _idempotency_key(run_id: str, step_id: str, call_id: str) -> str:
    key = f"{run_id}:{step_id}:{call_id}"
    return key if len(key) <= _LONGEST_KEY else f"{run_id}:{hashlib.sha256(key.encode()).hexdigest()}"
