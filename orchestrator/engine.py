"""Executes one claimed run: builds what its graph works with, starts or resumes the graph, ends the run.

However a run ends, `done` is its last event. What this module can't end, because the worker is told to stop or
has lost the run, it leaves as it is: the run goes on elsewhere from its last checkpoint.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import structlog
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import TypeAdapter

from kernel.agent_config import AgentConfig, MemoryConfig, SubAgent, SubAgentConfig
from kernel.errors import LeaseLost, LonghaulError, StoreUnavailable
from kernel.events import RunStatus
from kernel.leases import ClaimedRun
from kernel.postgres import UNAVAILABLE, Pool
from kernel.runlog import End, RunLog
from kernel.tool_definitions import ToolEntries
from memory.port import Memory
from orchestrator.approvals import Approvals
from orchestrator.brake import Brake, Braked, Waits
from orchestrator.budget import Budget
from orchestrator.checkpoints import PostgresCheckpoints
from orchestrator.context import Actor, RunContext
from orchestrator.graph import Graph
from orchestrator.kit import Kit, KitScope, Outfitter
from orchestrator.middleware.calls import RunCall, RunOutcome
from orchestrator.middleware.chain import Chain
from orchestrator.middleware.layers import Layers
from orchestrator.middleware.run_layers import AFTERWARDS, conclude, outcome_of, run_call, with_input
from orchestrator.models.choice import merged
from orchestrator.models.factory import Models
from orchestrator.skills.skill import UnknownSkill
from orchestrator.state import Call, GraphState, first_state
from orchestrator.tools.errors import BadKit, UnknownTool
from orchestrator.tools.tool import NoSecrets, Vault
from orchestrator.transcript import Transcript, conversation
from orchestrator.workflows import build_workflows

log = structlog.get_logger(__name__)


class Engine:
    """One per worker. Safe for any number of runs at once. `vault_of` gives a run its secrets; without it, none."""

    def __init__(
        self,
        db: Pool,
        *,
        models: Models,
        outfitter: Outfitter,
        memory: Memory,
        vault_of: Callable[[ClaimedRun], Vault] = lambda _: NoSecrets(),
        chain: Chain | None = None,
        workflows: Mapping[str, Graph] | None = None,
    ) -> None:
        self._db = db
        self._models = models
        self._outfitter = outfitter
        self._memory = memory
        self._vault_of = vault_of
        self._chain = chain or Chain()
        self._workflows = build_workflows(workflows)

    async def execute(self, run: ClaimedRun, pen: RunLog, brake: Brake) -> None:
        """Brings `run` to its end and returns when its `done` has been handed to the journal.

        Raises:
            Braked: the brake was pulled; the run is not ended and can go on from its last checkpoint.
            Waits: the run needs a decision; it is not ended and can go on from its last checkpoint.
            asyncio.CancelledError: the caller cancelled; the run is not ended.
            LeaseLost: the run is another worker's by now.
            StoreUnavailable: Postgres is away; the run is not ended and can go on elsewhere.
        """
        try:
            agent = AgentConfig.model_validate(run.agent)
            budget = Budget.of(agent.limits, run.request.get("budget"))
            budget.spend_tokens(run.input_tokens, run.output_tokens)
            budget.tool_calls = len(run.effects)
        except ValueError as error:
            log.error("agent_not_valid", run_id=run.id, error=str(error))
            message = f"Version {run.agent_version} of the agent is not valid in this release."
            _fail(pen, "failed", "bad_agent", message, "change the agent, which makes a new version")
            return
        if (problem := self._unfit(run)) is not None:
            _fail(pen, "failed", *problem)
            return
        deadline = asyncio.timeout(max(0.0, run.seconds_left))
        try:
            async with deadline:
                if self._chain.empty:
                    await self._run_graph(run, pen, agent, budget, brake)
                else:
                    await self._run_through_layers(run, pen, agent, budget, brake, deadline)
        except TimeoutError as error:
            if pen.ended:
                log.warning("middleware_too_slow", run_id=run.id, effect="cut short after the run's end")
                return
            if not deadline.expired():
                raise StoreUnavailable("a store did not answer in time") from error
            _fail(pen, "expired", "deadline", "The run did not end before its deadline.", *_TOO_LONG)
        except UNAVAILABLE as error:
            raise StoreUnavailable("Postgres was away for too long") from error
        except (LeaseLost, StoreUnavailable, Braked, Waits):
            raise
        except LonghaulError as error:
            _fail(pen, "failed", error.code, error.message, *error.suggestions)
        except Exception:
            log.exception("run_broke", run_id=run.id)
            _fail(pen, "failed", "internal", "Something went wrong inside Longhaul.", *_BROKEN)

    def _unfit(self, run: ClaimedRun) -> tuple[str, str, str] | None:
        """Why this release can't execute the run (code, message, suggestion), None if it can."""
        workflows = self._workflows.get(run.graph_version)
        if workflows is None:
            message = f"The run was started with graph version {run.graph_version}, which this release has no more."
            return "graph_retired", message, "send the request again: it starts with the present version"
        if run.workflow not in workflows:
            message = f"Graph version {run.graph_version} has no workflow {run.workflow!r}."
            return "no_workflow", message, f"ask for one of: {', '.join(workflows)}"
        return None

    async def _run_through_layers(
        self,
        run: ClaimedRun,
        pen: RunLog,
        agent: AgentConfig,
        budget: Budget,
        brake: Brake,
        deadline: asyncio.Timeout,
    ) -> None:
        async def execute(call: RunCall) -> RunOutcome:
            layers = Layers(self._chain, call)
            state = await self._run_graph(with_input(run, call.input), pen, agent, budget, brake, layers)
            afterwards = asyncio.get_running_loop().time() + AFTERWARDS
            deadline.reschedule(min(afterwards, deadline.when() or afterwards))
            return outcome_of(state, pen)

        outcome = await self._chain.around_run(execute)(run_call(run, agent))
        if not pen.ended:
            conclude(run, agent, pen, outcome)

    async def _run_graph(
        self,
        run: ClaimedRun,
        pen: RunLog,
        agent: AgentConfig,
        budget: Budget,
        brake: Brake,
        layers: Layers | None = None,
    ) -> GraphState:
        request = run.request
        vault = self._vault_of(run)
        actor = Actor(
            name=agent.name,
            instructions=agent.instructions,
            model=merged(agent.model, request.get("model")),
            kit=await self._kit(run, agent, vault, request.get("tools")),
            sub_agents=agent.sub_agents,
            memory=agent.memory,
            approvals=agent.approvals,
            response_schema=request.get("response_schema") or agent.response_schema,
        )
        context = RunContext(
            run=run,
            log=pen,
            actor=actor,
            path="",
            depth=0,
            max_depth=agent.limits.max_depth,
            brake=brake,
            approvals=Approvals(pen, run.approvals),
            budget=budget,
            transcript=_transcript(run, pen, ""),
            history=conversation(run.history),
            models=self._models,
            memory=self._memory,
            vault=vault,
            run_child=self._run_child,
            layers=layers,
        )
        state = await self._invoke(context, run.workflow, thread_id=run.id, position=len(run.messages))
        if not pen.ended:
            raise RuntimeError(f"the graph of run {run.id} stopped without an end")
        return state

    async def _kit(
        self, run: ClaimedRun, actor: AgentConfig | SubAgentConfig, vault: Vault, asked: Sequence[Any] | None = None
    ) -> Kit:
        """The agent's tools, of which a caller may have `asked` for some by name, and its own."""
        entries = list(actor.tools)
        if asked is not None:
            wanted = _ENTRIES.validate_python(asked)
            entries = [entry for entry in entries if (entry if isinstance(entry, str) else entry.name) in wanted]
            entries += [entry for entry in wanted if not isinstance(entry, str)]
        scope = KitScope(run.org_id, run.session_id, run.id, vault)
        return await self._outfitter.kit(entries, actor.skills, scope)

    async def _run_child(self, parent: RunContext, call: Call, config: SubAgent) -> tuple[Literal["ok", "error"], str]:
        """Runs a sub-agent to its answer, which is text for the model, also when it failed."""
        assert isinstance(config, SubAgentConfig)
        try:
            kit = await self._kit(parent.run, config, parent.vault)
        except (UnknownTool, UnknownSkill, BadKit) as error:
            return "error", f"Error: agent {config.name} can't work: {error.message}"
        path = parent.child_path(config.name, call)
        context = replace(
            parent,
            actor=Actor(
                name=config.name,
                instructions=config.instructions,
                model=config.model or parent.actor.model,
                kit=kit,
                sub_agents=config.sub_agents,
                memory=MemoryConfig(recall=False),
                approvals=config.approvals,
            ),
            path=path,
            depth=parent.depth + 1,
            transcript=_transcript(parent.run, parent.log, path),
            history=(),
        )
        assert isinstance(call["arguments"], dict)
        if not context.transcript.upto(1):
            context.transcript.add_input(call["arguments"]["task"])
        # A graph of its own: without this it would inherit metadata of the graph that it is called from.
        isolated = contextvars.copy_context()
        isolated.run(var_child_runnable_config.set, None)
        invocation = self._invoke(context, "agent_chat", thread_id=f"{parent.run.id}/{context.path}", position=1)
        state = await asyncio.create_task(invocation, context=isolated)
        if (failure := state["failure"]) is not None:
            return "error", f"Error: agent {config.name} failed: {failure['message']}"
        return "ok", state["answer"]["text"] if state["answer"] else ""

    async def _invoke(self, context: RunContext, workflow: str, *, thread_id: str, position: int) -> GraphState:
        run = context.run
        fresh = run.epoch == 1
        checkpoints = PostgresCheckpoints(self._db, run.org_id, context.log, fresh=fresh)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread_id},
            "recursion_limit": 2 * context.budget.max_steps + 8,
        }
        start: GraphState | None = first_state(position)
        if not fresh and await checkpoints.aget_tuple(config) is not None:
            start = None
        graph = self._workflows[run.graph_version][workflow].copy({"checkpointer": checkpoints})
        state: Any = await graph.ainvoke(start, config, context=context, durability="sync")
        return state  # type: ignore[no-any-return]


def _transcript(run: ClaimedRun, pen: RunLog, path: str) -> Transcript:
    transcript = Transcript(pen, path)
    transcript.load(run.messages)
    return transcript


_ENTRIES: Final = TypeAdapter(ToolEntries)


_TOO_LONG = (
    "raise limits.timeout_seconds of the agent, or budget.timeout_seconds or deadline_seconds of the run",
    "ask for less in one run: what was said so far is in the session",
)
_BROKEN = (
    "send the request again",
    "if it fails again, give the operator this run's id: the workers' log has the cause",
)


def _fail(pen: RunLog, status: RunStatus, code: str, message: str, *suggestions: str) -> None:
    error = {"code": code, "message": message, "retryable": False, "suggestions": list(suggestions)}
    pen.say("error", error, urgent=False)
    pen.end(End(status, code, pen.usage(), error))
