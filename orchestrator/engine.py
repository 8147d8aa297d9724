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

from kernel.agent_config import AgentConfig, ContextConfig, MemoryConfig, ModelChoice, SubAgent, SubAgentConfig
from kernel.agents import get_agent, get_version
from kernel.errors import LeaseLost, LonghaulError, NotFound, StoreUnavailable
from kernel.events import RunStatus
from kernel.leases import ClaimedRun, Spent
from kernel.postgres import UNAVAILABLE, Pool
from kernel.prices import Prices
from kernel.runlog import End, RunLog
from kernel.tool_definitions import ToolEntries
from memory.port import Memory
from orchestrator.approvals import Approvals
from orchestrator.brake import Brake, Braked, Waits
from orchestrator.budget import HIGHEST, Budget, WorkClock
from orchestrator.checkpoints import PostgresCheckpoints
from orchestrator.context import Actor, RunContext
from orchestrator.degradation import failure_operations, known
from orchestrator.graph import Graph
from orchestrator.kit import Kit, KitScope, Outfitter
from orchestrator.limits import NoPrice, take_decisions
from orchestrator.middleware.calls import RunCall, RunOutcome
from orchestrator.middleware.chain import Chain
from orchestrator.middleware.layers import Layers
from orchestrator.middleware.run_layers import AFTERWARDS, conclude, outcome_of, run_call, with_input
from orchestrator.models.choice import merged
from orchestrator.models.factory import Models
from orchestrator.retracing import retraced
from orchestrator.skills.skill import UnknownSkill
from orchestrator.state import Call, GraphState, first_state
from orchestrator.tools.errors import BadKit, UnknownTool
from orchestrator.tools.tool import NoSecrets, Vault
from orchestrator.transcript import Transcript
from orchestrator.window.context import ContextWindow
from orchestrator.window.windows import Windows
from orchestrator.workflows import build_workflows

log = structlog.get_logger(__name__)


class Engine:
    """One per worker. Safe for any number of runs at once. `vault_of` gives a run its secrets; without it, none.
    Without `windows` those of sessions are read from Postgres alone."""

    def __init__(
        self,
        db: Pool,
        *,
        models: Models,
        outfitter: Outfitter,
        memory: Memory,
        vault_of: Callable[[ClaimedRun], Vault] = lambda _: NoSecrets(),
        prices: Prices | None = None,
        chain: Chain | None = None,
        workflows: Mapping[str, Graph] | None = None,
        windows: Windows | None = None,
    ) -> None:
        self._db = db
        self._models = models
        self._outfitter = outfitter
        self._memory = memory
        self._vault_of = vault_of
        self._prices = prices or Prices.none()
        self._chain = chain or Chain()
        self._workflows = build_workflows(workflows)
        self._windows = windows or Windows(db)

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
            budget = Budget.of(agent.limits, run.request.get("budget"), WorkClock(run.worked_seconds))
            budget.spend(run.spent_in_all)
            budget.count_calls(_calls_made(run, ""))
            take_decisions(budget, run.approvals.values())
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
        window = ContextWindow(self._windows, run, agent.context)
        window.begin()
        try:
            return await self._run_agent(run, pen, agent, budget, brake, layers, window)
        finally:
            await window.aclose()

    async def _run_agent(
        self,
        run: ClaimedRun,
        pen: RunLog,
        agent: AgentConfig,
        budget: Budget,
        brake: Brake,
        layers: Layers | None,
        window: ContextWindow,
    ) -> GraphState:
        request, retry = run.request, run.retry
        model = merged(agent.model, request.get("model"))
        if (unpriced := self._unpriced(budget, model, agent.context)) is not None:
            raise NoPrice(f"The run has a limit on cost, and {unpriced}.", suggestions=_NO_PRICE)
        vault = self._vault_of(run)
        actor = Actor(
            name=agent.name,
            instructions=agent.instructions,
            model=model,
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
            max_depth=_lower(agent.limits.max_depth, request.get("budget")),
            max_parallel_agents=agent.limits.max_parallel_agents,
            brake=brake,
            approvals=Approvals(pen, run.approvals),
            budget=budget,
            transcript=_transcript(run, pen, ""),
            window=window,
            models=self._models,
            memory=self._memory,
            vault=vault,
            prices=self._prices,
            run_child=self._run_child,
            layers=layers,
        )
        given = len(run.messages) if retry is None else retry["input"]
        state = await self._invoke(context, run.workflow, thread_id=run.id, position=given)
        if not pen.ended:
            raise RuntimeError(f"the graph of run {run.id} stopped without an end")
        await self._windows.after(run, agent.context, model, context.transcript, pen, changed=window.changed)
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

    async def _run_child(
        self, parent: RunContext, call: Call, sub_agent: SubAgent, sharing: int
    ) -> tuple[Literal["ok", "error"], str]:
        """Runs a sub-agent to its answer, which is text for the model, also when it failed. `sharing` is how many are
        asked at the same time, itself included."""
        run, name = parent.run, sub_agent.name
        share = parent.budget.share(sharing, sub_agent.limits)
        try:
            config = await self._config_of(run, sub_agent)
            kit = await self._kit(run, config, parent.vault)
        except (NotFound, UnknownTool, UnknownSkill, BadKit) as error:
            return "error", f"Error: agent {name} can't work: {error.message}"
        if isinstance(config, AgentConfig):
            share = share.lowered(config.limits.model_dump())
        model = config.model or parent.actor.model
        budget = parent.budget.child(share)
        path = parent.child_path(name, call)
        window = parent.window.child(path, config.context if isinstance(config, AgentConfig) else None)
        if (unpriced := self._unpriced(budget, model, window.config)) is not None:
            return "error", f"Error: agent {name} can't work: there is a limit on cost, and {unpriced}."
        budget.spent = sum((spent for at, spent in run.spent.items() if _within(at, path)), Spent())
        budget.tool_calls = _calls_made(run, path)
        context = replace(
            parent,
            actor=Actor(
                name=name,
                instructions=config.instructions,
                model=model,
                kit=kit,
                sub_agents=config.sub_agents,
                memory=MemoryConfig(recall=False),
                approvals=config.approvals,
                response_schema=config.response_schema if isinstance(config, AgentConfig) else None,
            ),
            path=path,
            depth=parent.depth + 1,
            budget=budget,
            transcript=_transcript(run, parent.log, path),
            window=window,
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
            found = "".join(f"\n- {result}" for result in known(context, state)) or " nothing."
            return "error", f"Error: agent {name} failed: {failure['message']}\nWhat it had found:{found}"
        return "ok", state["answer"]["text"] if state["answer"] else ""

    async def _config_of(self, run: ClaimedRun, sub_agent: SubAgent) -> SubAgentConfig | AgentConfig:
        """Raises NotFound where the agent that is referred to is gone."""
        if isinstance(sub_agent, SubAgentConfig):
            return sub_agent
        if sub_agent.version is None:
            return (await get_agent(self._db, run.org_id, sub_agent.agent_id)).parsed()
        return (await get_version(self._db, run.org_id, sub_agent.agent_id, sub_agent.version)).parsed()

    def _unpriced(self, budget: Budget, choice: ModelChoice, context: ContextConfig) -> str | None:
        """What keeps a limit on cost from being held, None if it can be or there is none."""
        if budget.left("max_cost") is None:
            return None
        names = [choice.name or self._models.default, *(choice.fallbacks or ())]
        if context.summarize and context.summary_model is not None:
            names.append(context.summary_model)
        missing = [name for name in names if self._prices.of(name) is None]
        return f"there is no price for {', '.join(missing)}" if missing else None

    async def _invoke(self, context: RunContext, workflow: str, *, thread_id: str, position: int) -> GraphState:
        run = context.run
        fresh = run.epoch == 1
        checkpoints = PostgresCheckpoints(self._db, run.org_id, context.log, fresh=fresh)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread_id},
            "recursion_limit": _MOST_SUPERSTEPS,
        }
        graph = self._workflows[run.graph_version][workflow].copy({"checkpointer": checkpoints})
        share = None if context.budget.parent is None else context.budget.kept()
        start: GraphState | None = first_state(position, share)
        if not fresh and (saved := await checkpoints.aget_tuple(config)) is not None:
            start = None
            if context.path and (kept := saved.checkpoint["channel_values"].get("share")) is not None:
                context.budget.keep(kept)
        elif run.retry is not None and (found := retraced(run, context.path, position, share)) is not None:
            await graph.aupdate_state(config, dict(found), as_node="THINK")
            start = None
        state: Any = await graph.ainvoke(start, config, context=context, durability="sync")
        return state  # type: ignore[no-any-return]


def _transcript(run: ClaimedRun, pen: RunLog, path: str) -> Transcript:
    transcript = Transcript(pen, path)
    transcript.load(run.messages)
    return transcript


def _within(path: str, above: str) -> bool:
    """Whether `path` is that of the agent at `above`, or of one that it has asked."""
    return path == above or not above or path.startswith(f"{above}/")


def _calls_made(run: ClaimedRun, path: str) -> int:
    """Calls of the agent at `path` and of those it has asked that this run's earlier owners let loose."""
    return sum(
        effect.status != "denied" and not effect.inherited and _within(effect.path, path)
        for effect in run.effects.values()
    )


def _lower(depth: int, asked: dict[str, Any] | None) -> int:
    wanted = (asked or {}).get("max_depth")
    return depth if wanted is None else min(depth, wanted)


_MOST_SUPERSTEPS: Final = 2 * int(HIGHEST["max_steps"]) + 8
_ENTRIES: Final = TypeAdapter(ToolEntries)


_TOO_LONG = (
    "raise limits.timeout_seconds of the agent, or budget.timeout_seconds or deadline_seconds of the run",
    "ask for less in one run: what was said so far is in the session",
)
_NO_PRICE = (
    "add the model to the price table of the deployment, LONGHAUL_PRICES",
    "or take max_cost out of the agent's limits and the run's budget",
)
_BROKEN = (
    "send the request again",
    "if it fails again, give the operator this run's id: the workers' log has the cause",
)

_HOPELESS: Final = frozenset({"bad_agent", "no_workflow"})
"""What a retry, which keeps the agent's version and the workflow, comes to again."""


def _fail(pen: RunLog, status: RunStatus, code: str, message: str, *suggestions: str) -> None:
    error: dict[str, Any] = {
        "code": code,
        "message": message,
        "retryable": False,
        "suggestions": list(suggestions),
    }
    if code not in _HOPELESS:
        error["operations"] = failure_operations(pen.owner.run_id)
    pen.say("error", error, urgent=False)
    pen.end(End(status, code, pen.usage(), error))
