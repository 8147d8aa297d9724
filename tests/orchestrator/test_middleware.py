"""Layers: their order, what they may change, and that one that misbehaves does no harm beyond its own call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from orchestrator.brake import Braked
from orchestrator.middleware.calls import Emitted, ModelCall, RunCall, RunOutcome, ToolCall
from orchestrator.middleware.chain import Chain
from orchestrator.middleware.errors import MiddlewareFailed, Refused
from orchestrator.middleware.middleware import Middleware, ModelNext, RunNext, ToolNext
from orchestrator.models.turn import TextDelta, Turn, Usage
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import ToolOutcome

RUN = RunCall("run", "ses", "org", None, "agt", 1, "agent", "agent_chat", 1, "hello", (), {})
TOOL = ToolCall(RUN, "", "send", "once", {"to": "ada"}, ToolContext("org", None, None, "ses", "run", "call", "key"))
TURN = Turn(AIMessage("hi"), Usage(), "stop")


def model_call(emit: Callable[[Emitted], None] = lambda _: None) -> ModelCall:
    return ModelCall(RUN, "", "small", (), (), emit)


class Recorder(Middleware):
    """Writes down what passes it."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self._name = name
        self._seen = seen

    async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
        self._seen.append(f"{self._name} in")
        outcome = await call_next(replace(call, input=call.input + self._name))
        self._seen.append(f"{self._name} out")
        return replace(outcome, text=outcome.text + self._name)


async def answer(call: RunCall) -> RunOutcome:
    return RunOutcome("succeeded", call.input)


async def make(call: ToolCall) -> ToolOutcome:
    return ToolOutcome("ok", "sent", 1)


async def test_the_first_layer_is_the_outermost_and_each_may_change_what_passes() -> None:
    seen: list[str] = []
    chain = Chain({name: Recorder(name, seen) for name in "ab"})
    outcome = await chain.around_run(answer)(RUN)
    assert seen == ["a in", "b in", "b out", "a out"]
    assert outcome.text == "helloabba"


async def test_without_layers_nothing_is_wrapped() -> None:
    for chain in (Chain(), Chain({"idle": Middleware()})):
        assert chain.empty
        assert chain.around_run(answer) is answer
        assert chain.around_tool(make) is make


async def test_a_layer_around_runs_costs_other_calls_nothing() -> None:
    chain = Chain({"a": Recorder("a", [])})
    assert chain.around_tool(make) is make


async def test_a_layer_that_breaks_is_named_and_shows_nothing_of_why() -> None:
    class Broken(Middleware):
        async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
            raise KeyError("a password")

    with pytest.raises(MiddlewareFailed) as failure:
        await Chain({"broken": Broken()}).around_run(answer)(RUN)
    assert "'broken'" in failure.value.message
    assert "password" not in failure.value.message


async def test_a_layer_that_gives_no_outcome_is_a_layer_that_breaks() -> None:
    class Silent(Middleware):
        async def around_run(self, call: RunCall, call_next: RunNext) -> Any:
            await call_next(call)

    with pytest.raises(MiddlewareFailed, match="silent"):
        await Chain({"silent": Silent()}).around_run(answer)(RUN)


@pytest.mark.parametrize("stop", [Braked, asyncio.CancelledError])
async def test_what_stops_a_run_can_not_be_swallowed(stop: type[BaseException]) -> None:
    class Greedy(Middleware):
        async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
            try:
                return await call_next(call)
            except BaseException:
                return RunOutcome("succeeded", "as if nothing had happened")

    async def stopped(call: RunCall) -> RunOutcome:
        raise stop

    with pytest.raises(stop):
        await Chain({"greedy": Greedy()}).around_run(stopped)(RUN)


async def test_a_fault_on_the_way_out_does_not_hide_what_stops_a_run() -> None:
    class Clumsy(Middleware):
        async def around_run(self, call: RunCall, call_next: RunNext) -> RunOutcome:
            try:
                return await call_next(call)
            finally:
                raise ValueError

    async def stopped(call: RunCall) -> RunOutcome:
        raise Braked

    with pytest.raises(Braked):
        await Chain({"clumsy": Clumsy()}).around_run(stopped)(RUN)


async def test_a_refused_tool_call_is_denied_and_the_model_told_why() -> None:
    class Guard(Middleware):
        async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
            raise Refused("after_hours", "Nothing is sent at night.", suggestions=("wait until eight",))

    outcome = await Chain({"guard": Guard()}).around_tool(make)(TOOL)
    assert outcome == ToolOutcome("denied", "Nothing is sent at night. wait until eight.", 0)


async def test_a_call_that_must_not_be_made_twice_is_not_and_its_lost_result_is_unknown() -> None:
    made: list[str] = []

    async def counted(call: ToolCall) -> ToolOutcome:
        made.append(call.name)
        return ToolOutcome("ok", "sent", 1)

    class Insistent(Middleware):
        async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
            await call_next(call)
            return await call_next(call)

    outer: list[ToolOutcome] = []

    class Watching(Middleware):
        async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
            outer.append(await call_next(call))
            return outer[-1]

    chain = Chain({"watching": Watching(), "insistent": Insistent()})
    outcome = await chain.around_tool(counted)(TOOL)
    assert made == ["send"]
    assert outcome.status == "unknown"
    assert "'insistent'" in outcome.result
    assert outer == [outcome]
    again = await chain.around_tool(counted)(replace(TOOL, effect="read"))
    assert (again.status, len(made)) == ("ok", 3)


async def test_a_tool_call_is_not_made_when_a_layer_breaks_before_it() -> None:
    class Broken(Middleware):
        async def around_tool(self, call: ToolCall, call_next: ToolNext) -> ToolOutcome:
            raise ValueError

    outcome = await Chain({"broken": Broken()}).around_tool(make)(TOOL)
    assert outcome.status == "error"
    assert "was not called" in outcome.result


async def test_a_model_may_be_asked_again_until_something_was_said() -> None:
    class Again(Middleware):
        async def around_model(self, call: ModelCall, call_next: ModelNext) -> Turn:
            await call_next(call)
            return await call_next(call)

    said: list[Emitted] = []
    asked: list[bool] = []

    async def quiet(call: ModelCall) -> Turn:
        asked.append(True)
        return TURN

    async def loud(call: ModelCall) -> Turn:
        call.emit(TextDelta("hi"))
        return TURN

    chain = Chain({"again": Again()})
    assert await chain.around_model(quiet)(model_call()) is TURN
    assert len(asked) == 2
    with pytest.raises(MiddlewareFailed, match="again"):
        await chain.around_model(loud)(model_call(said.append))
    assert said == [TextDelta("hi")]


async def test_layers_are_closed_and_one_that_fails_to_keeps_no_other_from_it() -> None:
    closed: list[str] = []

    class Closing(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def aclose(self) -> None:
            closed.append(self.name)
            raise ValueError

    await Chain({"a": Closing("a"), "b": Closing("b")}).aclose()
    assert closed == ["b", "a"]
