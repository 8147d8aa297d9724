"""What one agent in one run is told: puts its context together at each step, and sums up where it would not fit.

The run's own agent has the session's window; a sub-agent has its own messages alone. A summary that can't be had costs
nothing but detail: then the context is cut, and the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
import structlog
from langchain_core.messages import AnyMessage, BaseMessage

from kernel.agent_config import ContextConfig, ModelChoice
from kernel.errors import LonghaulError
from kernel.leases import ClaimedRun, Spent
from kernel.tasks import end
from orchestrator.middleware.calls import Emitted, ModelCall
from orchestrator.models.turn import Turn
from orchestrator.window import records
from orchestrator.window.asked import MOST_TOKENS, kept
from orchestrator.window.asker import Asker
from orchestrator.window.assembly import Context, Parts, assemble, falling
from orchestrator.window.pieces import Piece, Round, of_said, of_transcript
from orchestrator.window.preamble import About
from orchestrator.window.record import Place, Said, Summary, Window
from orchestrator.window.references import OPEN_RESULT
from orchestrator.window.summary import SummaryFailed, chunk, read_turn, room_for, summarize, summary_tokens, tokens_of
from orchestrator.window.tokens import estimate, of_message
from orchestrator.window.windows import Windows

log = structlog.get_logger(__name__)

_LONGEST: Final = 120.0
_PAUSE: Final = 5  # rounds after a failed summary until another one is tried
_MOST_CHUNKS: Final = 3
_LEAST_ANSWER: Final = 4_000
_NOTES: Final = frozenset({"note"})


@dataclass(frozen=True, slots=True)
class Told:
    """What goes to the model. `spent` says that a model was asked to sum up."""

    messages: list[AnyMessage]
    tools: Sequence[dict[str, Any]]
    spent: bool = False


class ContextWindow:
    """Made for each agent of a run. `aclose` ends what it has begun to load."""

    def __init__(self, windows: Windows, run: ClaimedRun, config: ContextConfig, path: str = "") -> None:
        self.config = config
        self.changed = False  # whether the session's window is another one than before the run
        self._windows = windows
        self._run = run
        self._path = path
        self._history: list[Piece] = []
        self._about = About()
        self._base: Place | None = None  # where the summary ends; None until the window is loaded
        self._all = True  # whether the history begins where the summary ends
        self._covered = -1  # this turn's messages up to here are in `about.steps`
        self._covered_known = run.epoch == 1
        self._pieces: dict[int, Piece] = {}
        self._noted = -1
        self._tried = -_PAUSE
        self._cut = False
        self._fits_tools: tuple[int, int] = (-1, 0)
        self._loading: asyncio.Task[Window] | None = None
        self._tell_summary: Summary | None = None

    def begin(self) -> None:
        """Takes the conversation in; what the claim did not bring is loaded meanwhile."""
        if self._windows.wanted(self._run):
            self._loading = asyncio.create_task(self._windows.load(self._run), name=f"window {self._run.id}")
        else:
            said = [Said((0, 0), message["role"], message["content"]) for message in self._run.history]
            self._history = [of_said(one) for one in self._recent(said)]

    async def aclose(self) -> None:
        if self._loading is not None:
            await end(self._loading)

    def child(self, path: str, config: ContextConfig | None) -> ContextWindow:
        """That of a sub-agent, which knows nothing of the session."""
        return ContextWindow(self._windows, self._run, config or self.config, path)

    async def tell(
        self,
        context: Asker,
        system: str,
        position: int,
        tools: Sequence[dict[str, Any]],
        tail: Sequence[BaseMessage] = (),
    ) -> Told:
        """The messages of the next call, and the tools that it may use. `tail` stands behind them in any case."""
        await self._ready()
        opens = OPEN_RESULT in context.actor.kit.toolbox.names
        placed = context.transcript.placed(position)
        task, rounds = of_transcript(placed, self.config.result_tokens, self._pieces, opens=opens)
        await self._reread_notes(context, rounds)
        budget = self.config.max_tokens - self._of_tools(tools) - sum(of_message(message) for message in tail)
        parts = self._parts(system, task, rounds)
        told = assemble(parts, budget, opens=opens)
        if told.squeezed and not self._covered_known:
            self._covered_known = True
            if found := await records.run_summary(self._windows.db, self._run, self._path, position):
                self._covered, steps = found
                self._about = replace(self._about, steps=steps)
                parts = self._parts(system, task, rounds)
                told = assemble(parts, budget, opens=opens)
        spent = context.budget.spent
        if told.squeezed:
            told = await self._compact(context, parts, budget, told, opens=opens)
        self._say_earlier(context)
        messages: list[AnyMessage] = [*told.messages, *tail]  # type: ignore[list-item]
        return Told(messages, self._with_opener(context, tools, told, opens=opens), context.budget.spent != spent)

    # -- what is known ---------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        if self._loading is not None:
            loading, self._loading = self._loading, None
            self._take(await loading)

    def _take(self, window: Window) -> None:
        self._base = window.base
        self._all = len(window.dialogue) < records.MOST_DIALOGUE
        self._history = [of_said(one) for one in self._recent(window.dialogue)]
        summary = window.summary
        self._about = replace(
            self._about,
            summary=summary.text if summary else "",
            asked=summary.asked if summary else (),
            notes=window.notes,
            results=window.results,
        )
        if summary is not None and summary.told_in == self._run.turn and self._run.epoch == 1:
            self._tell_summary = summary

    def _recent(self, said: Sequence[Said]) -> Sequence[Said]:
        """What will be summed up stays until it is."""
        return said if self.config.summarize else said[-self.config.keep_recent :]

    def _parts(self, system: str, task: Sequence[Piece], rounds: Sequence[Round]) -> Parts:
        left = [round for round in rounds if round.last > self._covered]
        return Parts(system, self._about, self._history, task, left, self._run.turn)

    async def _reread_notes(self, context: Asker, rounds: Sequence[Round]) -> None:
        """Notes that the run itself has changed."""
        if self._path or not _NOTES.intersection(context.actor.kit.names):
            return
        last = max((round.last for round in rounds if any(piece.tool in _NOTES for piece in round.pieces)), default=-1)
        if last > self._noted:
            self._noted = last
            self.changed = True
            found = await records.notes(self._windows.db, self._run.org_id, self._run.session_id)
            self._about = replace(self._about, notes=found)

    def _of_tools(self, tools: Sequence[dict[str, Any]]) -> int:
        if self._fits_tools[0] != len(tools):
            self._fits_tools = len(tools), sum(estimate(orjson.dumps(tool).decode()) for tool in tools)
        return self._fits_tools[1]

    def _with_opener(
        self, context: Asker, tools: Sequence[dict[str, Any]], told: Context, *, opens: bool
    ) -> Sequence[dict[str, Any]]:
        if not opens or OPEN_RESULT in context.actor.kit.names:
            return tools
        if not self._about.results and not any(_refers(message) for message in told.messages):
            return tools
        return [*tools, *context.actor.kit.toolbox.schemas([OPEN_RESULT])]

    def _say_earlier(self, context: Asker) -> None:
        """What was summed up between the last run and this one."""
        if (summary := self._tell_summary) is not None:
            self._tell_summary = None
            _say(context, summary.messages, summary.tokens_before, summary.tokens_after, "summary")

    # -- what falls out --------------------------------------------------------------------------------------------

    async def _compact(self, context: Asker, parts: Parts, budget: int, told: Context, *, opens: bool) -> Context:
        if self.config.summarize and len(parts.rounds) - self._tried >= _PAUSE:
            before = told.needed
            count = 0
            try:
                async with asyncio.timeout(_LONGEST):
                    count = await self._sum_up(context, parts, budget)
            except (LonghaulError, TimeoutError) as error:
                # A call of a limit or of a layer that stops is the next call's to find, too.
                self._tried = len(parts.rounds)
                log.warning("summary_failed", run_id=self._run.id, error=str(error), effect="the context is cut")
            if count:
                parts = self._parts(parts.system, parts.task, parts.rounds)
                told = assemble(parts, budget, opens=opens)
                self._cut = told.squeezed
                _say(context, count, before, told.tokens, "summary")
        if told.squeezed and not self._cut:
            self._cut = True
            _say(context, told.left_out, told.needed, told.tokens, "cut")
        return told

    async def _sum_up(self, context: Asker, parts: Parts, budget: int) -> int:
        """Sums up what has to go so that half of the room is free; how many messages that were."""
        if self._base is None and parts.history and not self._path:
            self._take(await self._windows.load(self._run))  # only the window knows where each message stands
            parts = self._parts(parts.system, parts.task, parts.rounds)
        room = max(budget - estimate(parts.system), 0)
        messages, rounds = falling(parts, room // 2)
        count = 0
        if messages:
            count += await self._sum_up_history(context, messages)
        if rounds:
            count += await self._sum_up_rounds(context, parts.rounds[:rounds])
        return count

    async def _sum_up_history(self, context: Asker, messages: int) -> int:
        assert self._base is not None
        count = 0
        for _ in range(_MOST_CHUNKS):
            pieces = self._history[: messages - count]
            if not pieces:
                break
            pieces = pieces[: chunk(pieces, room_for(self.config.max_tokens))]
            made = await self._ask(context, self._about.summary, pieces)
            asked = [*self._about.asked, *(one for piece in pieces if (one := piece.asked()) is not None)]
            summary = Summary(
                pieces[-1].at,
                made[0],
                kept(asked, MOST_TOKENS),
                len(pieces),
                sum(piece.tokens for piece in pieces),
                tokens_of(made[0]),
            )
            run, turn = self._run, made[1]
            # What a run says that goes on from an earlier one leaves out turns in between.
            if run.retry is None and self._all:
                used = turn.usage.input_tokens, turn.usage.output_tokens
                await records.keep_summary(
                    self._windows.db,
                    run.org_id,
                    run.session_id,
                    self._base,
                    summary,
                    model=turn.model,
                    used=used,
                    tell=False,
                )
                self.changed = True
            self._about = replace(self._about, summary=summary.text, asked=summary.asked)
            self._base = summary.upto
            self._history = self._history[len(pieces) :]
            count += len(pieces)
        return count

    async def _sum_up_rounds(self, context: Asker, rounds: Sequence[Round]) -> int:
        room, count = room_for(self.config.max_tokens), 0
        left = list(rounds)
        for _ in range(_MOST_CHUNKS):
            if not left:
                break
            fit = 1
            while fit < len(left) and chunk([p for r in left[: fit + 1] for p in r.pieces], room) >= sum(
                len(r.pieces) for r in left[: fit + 1]
            ):
                fit += 1
            pieces = [piece for round in left[:fit] for piece in round.pieces]
            text, turn = await self._ask(context, self._about.steps, pieces)
            self._covered = left[fit - 1].last
            self._about = replace(self._about, steps=text)
            await records.keep_run_summary(self._windows.db, self._run, self._path, self._covered, text, turn.model)
            count += len(pieces)
            left = left[fit:]
        return count

    async def _ask(self, context: Asker, earlier: str, pieces: Sequence[Piece]) -> tuple[str, Turn]:
        """A summary, whose tokens count like all others of the run, also where nothing comes of it."""
        tokens, room = summary_tokens(self.config.max_tokens), room_for(self.config.max_tokens)
        choice = summary_choice(context.actor.model, self.config)
        left = context.budget.left("max_tokens")
        if left is not None and left < min(sum(piece.tokens for piece in pieces), room) + tokens:
            raise SummaryFailed("the run has too few tokens left for a summary")
        chat = await context.models.choose(choice, context.vault)

        async def ask(messages: Sequence[BaseMessage]) -> Turn:
            turn = await answer(messages)
            _spend(context, turn)
            return turn

        async def answer(messages: Sequence[BaseMessage]) -> Turn:
            if (layers := context.layers) is None:
                return await read_turn(chat, messages)

            async def through(call: ModelCall) -> Turn:
                return await read_turn(chat, call.messages)

            named = choice.name or context.models.default
            return await layers.ask_model(
                through, path=context.path, model=named, messages=messages, tools=(), emit=_unheard
            )

        made = await summarize(ask, earlier, pieces, tokens=tokens, room=room)
        return made.text, made.turn


def summary_choice(model: ModelChoice, config: ContextConfig) -> ModelChoice:
    """Which model sums up. That answers are to be short is no reason to break off a summary."""
    most = model.max_tokens and max(model.max_tokens, _LEAST_ANSWER)
    return model.model_copy(update={"name": config.summary_model or model.name, "max_tokens": most})


def _spend(context: Asker, turn: Turn) -> None:
    usage = turn.usage
    cost = context.prices.cost(turn.model, usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    context.budget.spend(Spent(0, usage.input_tokens, usage.output_tokens, cost))
    spent = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost": cost}
    context.log.say("usage", context.named(spent | {"model": turn.model, "purpose": "summary"}), urgent=False)


def _say(context: Asker, messages: int, before: int, after: int, how: str) -> None:
    about = {"messages": messages, "tokens_before": before, "tokens_after": after, "by": how}
    context.log.say("context_compacted", context.named(about), urgent=False)


def _refers(message: AnyMessage) -> bool:
    content = message.content
    return message.type == "tool" and isinstance(content, str) and content.startswith("[result of ")


def _unheard(_: Emitted) -> None:
    """A summary is streamed to nobody."""
