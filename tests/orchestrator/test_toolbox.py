"""The toolbox: whatever a model calls and however a tool behaves, a call ends in an outcome with useful words."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import pytest
import structlog
from pydantic import BaseModel, Field

from kernel.effects import EffectClass
from orchestrator.tools.errors import ToolFailure, UnknownTool
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from tests.orchestrator.defined import Pocket

CONTEXT = ToolContext(
    org_id="org_1",
    user_id=None,
    agent_id=None,
    session_id="ses_1",
    run_id="run_1",
    call_id="call_1",
    idempotency_key="run_1:2:call_1",
)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


class Weighing(Arguments):
    item: str
    grams: Annotated[int, Field(ge=1, le=1000, description="net weight")] = 5


class Nothing(Arguments):
    pass


class Scripted(Tool[Weighing]):
    """A tool whose behaviour is given; it remembers what it was called with."""

    name = "weigh"
    description = "Weighs an item."
    arguments = Weighing
    timeout = 5.0

    def __init__(self, behave: Callable[[Weighing], Any], *, effect: EffectClass = "read", retries: int = 0) -> None:
        self.effect = effect
        self.retries = retries
        self.calls: list[Weighing] = []
        self._behave = behave

    async def run(self, arguments: Weighing, context: ToolContext) -> JSONValue:
        self.calls.append(arguments)
        result: JSONValue = self._behave(arguments)
        return await result if asyncio.iscoroutine(result) else result


def failing(*failures: Exception | None, then: JSONValue = "done") -> Callable[[Weighing], JSONValue]:
    left = list(failures)

    def behave(_: Weighing) -> JSONValue:
        failure = left.pop(0) if left else None
        if failure is not None:
            raise failure
        return then

    return behave


async def call(tool: Tool[Any], arguments: Any = '{"item": "tea"}') -> ToolOutcome:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return await Toolbox([tool], sleep=sleep).call(tool.name, arguments, CONTEXT, allowed=[tool.name])


# what the model sees


def test_a_tool_is_described_in_the_openai_format_without_titles() -> None:
    toolbox = Toolbox([Scripted(failing())])
    assert toolbox.schemas(["weigh"]) == [
        {
            "type": "function",
            "function": {
                "name": "weigh",
                "description": "Weighs an item.",
                "parameters": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "item": {"type": "string"},
                        "grams": {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": 1000,
                            "default": 5,
                            "description": "net weight",
                        },
                    },
                    "required": ["item"],
                },
            },
        }
    ]


def test_schemas_are_made_once() -> None:
    toolbox = Toolbox([Scripted(failing())])
    assert toolbox.schemas(["weigh"])[0] is toolbox.schemas(["weigh"])[0]


def test_asking_for_the_schema_of_a_missing_tool_names_it_and_what_there_is() -> None:
    with pytest.raises(UnknownTool, match="fly") as raised:
        Toolbox([Scripted(failing())]).schemas(["weigh", "fly"])
    assert raised.value.suggestions == ("use one of: weigh",)


def test_a_tool_without_arguments_has_an_empty_object_as_parameters() -> None:
    class Ping(Tool[Nothing]):
        name, description, arguments, effect = "ping", "Pings.", Nothing, "read"

        async def run(self, arguments: Nothing, context: ToolContext) -> JSONValue:
            return None

    (schema,) = Toolbox([Ping()]).schemas(["ping"])
    assert schema["function"]["parameters"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools are named 'weigh'"):
        Toolbox([Scripted(failing()), Scripted(failing())])


def test_arguments_that_take_unknown_fields_are_refused() -> None:
    class Loose(BaseModel):
        item: str

    tool = Scripted(failing())
    tool.arguments = Loose  # type: ignore[assignment]
    with pytest.raises(ValueError, match="forbid unknown fields"):
        Toolbox([tool])


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "naïve", "a\n"])
def test_a_name_that_models_cannot_call_is_refused(name: str) -> None:
    tool = Scripted(failing())
    tool.name = name
    with pytest.raises(ValueError, match="tool name"):
        Toolbox([tool])


# calls that work


async def test_valid_arguments_reach_the_tool_validated() -> None:
    tool = Scripted(lambda arguments: {"item": arguments.item, "grams": arguments.grams})
    outcome = await call(tool, '{"item": "tea", "grams": "12"}')
    assert (outcome.status, json.loads(outcome.result)) == ("ok", {"item": "tea", "grams": 12})
    assert tool.calls == [Weighing(item="tea", grams=12)]


async def test_arguments_may_be_parsed_already() -> None:
    assert (await call(Scripted(failing()), {"item": "tea"})).status == "ok"


@pytest.mark.parametrize("raw", ["", "  ", "{}"])
async def test_a_tool_without_required_fields_takes_no_arguments_at_all(raw: str) -> None:
    class Ping(Tool[Nothing]):
        name, description, arguments, effect = "ping", "Pings.", Nothing, "read"

        async def run(self, arguments: Nothing, context: ToolContext) -> JSONValue:
            return context.idempotency_key

    assert (await call(Ping(), raw)).result == "run_1:2:call_1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain text", "plain text"),
        (None, "null"),
        ({"a": [1, 2.5, True]}, '{"a":[1,2.5,true]}'),
        ({"n": 2**80}, '{"n":1208925819614629174706176}'),
        ({"n": float("nan")}, '{"n":null}'),
        ("a\x00b\ud800c", "a\ufffdb\ufffdc"),
        ({"k\x00": ["a\x00b", "\udfff"]}, '{"k\ufffd":["a\ufffdb","\ufffd"]}'),
        ({"backslash": "\\u0000"}, '{"backslash":"\\\\u0000"}'),
    ],
)
async def test_a_result_becomes_text_that_can_be_stored(value: JSONValue, text: str) -> None:
    outcome = await call(Scripted(failing(then=value)))
    assert (outcome.status, outcome.result) == ("ok", text)


async def test_a_long_result_is_cut_with_a_note_and_stays_valid_text() -> None:
    tool = Scripted(failing(then="é" * 10_000))
    tool.max_result_bytes = 1_001
    outcome = await call(tool)
    assert len(outcome.result.encode()) <= 1_001
    assert outcome.result.endswith("\n[cut: 20000 bytes in all, only the beginning is shown]")


def _circle() -> Any:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize("value", [object(), {1, 2}, (letter for letter in "abc"), _circle()])
async def test_a_result_that_is_not_json_is_a_fault_of_the_tool(value: Any) -> None:
    outcome = await call(Scripted(failing(then=value)))
    assert outcome.status == "error"
    assert "fault of its own" in outcome.result


# wrong calls


async def test_an_unknown_tool_is_an_error_that_lists_the_tools_there_are() -> None:
    outcome = await Toolbox([Scripted(failing())]).call("fly", "{}", CONTEXT, allowed=["weigh"])
    assert (outcome.status, outcome.result) == (
        "error",
        "There is no tool named 'fly'. The tools there are: weigh.",
    )


async def test_a_tool_that_is_not_allowed_is_denied_and_does_not_run() -> None:
    tool = Scripted(failing())
    outcome = await Toolbox([tool]).call("weigh", '{"item": "tea"}', CONTEXT, allowed=["fly"])
    assert (outcome.status, outcome.result) == ("denied", "The tool 'weigh' is not allowed here. Allowed: none.")
    assert tool.calls == []


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ('{"item": "te', "not valid JSON"),
        ("tea please", "not valid JSON"),
        ('{"item": "tea"} extra', "not valid JSON"),
        ('["tea"]', "one JSON object"),
        ("null", "one JSON object"),
        ('"tea"', "one JSON object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
async def test_arguments_that_are_no_json_object_are_explained(raw: str, words: str) -> None:
    tool = Scripted(failing())
    outcome = await call(tool, raw)
    assert outcome.status == "error"
    assert words in outcome.result
    assert "item (required), grams (optional)" in outcome.result
    assert tool.calls == []


async def test_invalid_arguments_name_every_field_that_is_wrong() -> None:
    outcome = await call(Scripted(failing()), {"grams": 0, "colour": "red"})
    assert outcome.status == "error"
    assert "- item: Field required" in outcome.result
    assert "- grams: Input should be greater than or equal to 1" in outcome.result
    assert "- colour: Extra inputs are not permitted" in outcome.result


async def test_a_thousand_wrong_fields_do_not_flood_the_model() -> None:
    outcome = await call(Scripted(failing()), {f"field_{n}" * 50: n for n in range(1000)})
    assert outcome.status == "error"
    assert "and 991 more" in outcome.result
    assert len(outcome.result) < 4_000


@pytest.mark.parametrize("arguments", [{"\ud800": 1}, {"item": "tea", "\x00": 1}])
async def test_arguments_that_are_no_valid_text_are_refused_in_valid_text(arguments: dict[str, Any]) -> None:
    outcome = await call(Scripted(failing()), arguments)
    assert outcome.status == "error"
    assert "\x00" not in outcome.result
    outcome.result.encode()


# tools that fail


async def test_a_failure_reaches_the_model_in_the_tools_own_words() -> None:
    outcome = await call(Scripted(failing(ToolFailure("The scales are\x00 locked."))))
    assert (outcome.status, outcome.result) == ("error", "The scales are\ufffd locked.")


async def test_a_retryable_failure_is_tried_again_until_it_works() -> None:
    tool = Scripted(failing(ToolFailure("busy", retryable=True), ToolFailure("busy", retryable=True)), retries=2)
    outcome = await call(tool)
    assert (outcome.status, outcome.result, len(tool.calls)) == ("ok", "done", 3)


async def test_retries_end_and_the_last_failure_is_told() -> None:
    tool = Scripted(failing(*[ToolFailure("busy", retryable=True)] * 9), retries=2)
    outcome = await call(tool)
    assert (outcome.status, outcome.result, len(tool.calls)) == ("error", "busy\n(tried 3 times)", 3)


async def test_waits_between_attempts_grow_and_are_drawn_at_random() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    for _ in range(50):
        tool = Scripted(failing(*[ToolFailure("busy", retryable=True)] * 9), retries=8)
        await Toolbox([tool], sleep=sleep).call("weigh", {"item": "tea"}, CONTEXT, allowed=["weigh"])
    rounds = [waits[attempt::8] for attempt in range(8)]
    for attempt, seconds in enumerate(rounds):
        assert 0 <= min(seconds) <= max(seconds) <= min(8.0, 0.25 * 2**attempt)
    assert len(set(waits)) > 300
    assert max(rounds[5]) > max(rounds[0])


async def test_a_failure_that_is_not_retryable_is_not_tried_again() -> None:
    tool = Scripted(failing(ToolFailure("no")), retries=5)
    assert (await call(tool)).status == "error"
    assert len(tool.calls) == 1


async def test_a_hanging_tool_times_out_and_a_read_is_tried_again() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    tool = Scripted(lambda _: hang(), retries=1)
    tool.timeout = 0.01
    outcome = await call(tool)
    assert outcome.status == "error"
    assert "did not answer within 0.01 s" in outcome.result
    assert len(tool.calls) == 2
    assert outcome.duration_ms >= 20


async def test_a_timeout_of_an_effect_that_happens_once_has_an_unknown_outcome() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    tool = Scripted(lambda _: hang(), effect="once", retries=5)
    tool.timeout = 0.01
    outcome = await call(tool)
    assert outcome.status == "unknown"
    assert "may or may not have been done" in outcome.result
    assert len(tool.calls) == 1


async def test_an_effect_that_happens_once_is_not_retried_after_it_may_have_been_sent() -> None:
    tool = Scripted(failing(ToolFailure("connection lost", retryable=True)), effect="once", retries=5)
    outcome = await call(tool)
    assert (outcome.status, len(tool.calls)) == ("unknown", 1)


async def test_an_effect_that_happens_once_is_retried_while_nothing_was_sent() -> None:
    tool = Scripted(failing(ToolFailure("no connection", retryable=True, reached=False)), effect="once", retries=5)
    outcome = await call(tool)
    assert (outcome.status, len(tool.calls)) == ("ok", 2)


async def test_an_effect_that_happens_once_and_breaks_has_an_unknown_outcome() -> None:
    outcome = await call(Scripted(failing(RuntimeError("boom")), effect="once", retries=5))
    assert outcome.status == "unknown"


@pytest.mark.parametrize("failure", [RuntimeError("password=hunter2"), TimeoutError("password=hunter2")])
async def test_an_unexpected_exception_is_logged_and_the_model_learns_nothing_of_it(
    failure: Exception, logs: list[structlog.typing.EventDict]
) -> None:
    tool = Scripted(failing(failure), retries=5)
    outcome = await call(tool, {"item": "secret tea"})
    assert outcome.status == "error"
    assert "hunter2" not in outcome.result
    assert len(tool.calls) == 1
    (line,) = logs
    assert (line["event"], line["tool"], line["run_id"], line["exc_info"]) == (
        "tool_broke",
        "weigh",
        "run_1",
        True,
    )
    assert "secret tea" not in str(line)


async def test_a_tool_that_exits_does_not_take_the_process_with_it() -> None:
    assert (await call(Scripted(lambda _: sys.exit(3)))).status == "error"


async def test_a_cancellation_inside_a_tool_is_a_fault_of_the_tool() -> None:
    async def inner() -> None:
        raise asyncio.CancelledError

    assert (await call(Scripted(lambda _: inner()))).status == "error"


async def test_cancelling_the_call_cancels_the_tool_and_goes_on_to_the_caller() -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    task = asyncio.create_task(call(Scripted(lambda _: hang())))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()


async def test_closing_goes_on_past_a_tool_that_fails_to_close() -> None:
    closed: list[str] = []

    class Closing(Scripted):
        async def aclose(self) -> None:
            closed.append(self.name)
            raise OSError("stuck")

    tools = [Closing(failing()), Closing(failing())]
    tools[1].name = "other"
    await Toolbox(tools).aclose()
    assert closed == ["weigh", "other"]


async def test_a_tool_that_will_not_be_cancelled_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tools.toolbox._LAST_WORDS_SECONDS", 0.02)
    released, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    tool = Scripted(lambda _: stubborn())
    tool.timeout = 0.01
    outcome = await call(tool)
    assert outcome.status == "error"
    assert "did not answer within 0.01 s" in outcome.result
    released.set()
    await ended.wait()


# secrets


def secretive(*values: str) -> ToolContext:
    return replace(CONTEXT, vault=Pocket(**{f"secret{place}": value for place, value in enumerate(values)}))


async def test_secrets_are_struck_out_of_results_and_failures() -> None:
    for answer in (
        failing(then={"told": ["it is hunter2!"]}),
        failing(then="it is hunter2!"),
        failing(ToolFailure("refused: hunter2")),
    ):
        outcome = await Toolbox([Scripted(answer)]).call(
            "weigh", {"item": "x"}, secretive("hunter2"), allowed=["weigh"]
        )
        assert "hunter2" not in outcome.result
        assert "[redacted]" in outcome.result


async def test_secrets_are_struck_out_of_the_log_of_a_broken_tool(logs: list[structlog.typing.EventDict]) -> None:
    tool = Scripted(failing(ValueError("bad header: hunter2")))
    outcome = await Toolbox([tool]).call("weigh", {"item": "x"}, secretive("hunter2"), allowed=["weigh"])
    assert outcome.status == "error"
    [line] = logs
    assert line["event"] == "tool_broke"
    assert "bad header: [redacted]" in line["exception"]
    assert "hunter2" not in str(line)


async def test_a_call_is_not_made_while_the_secrets_can_not_be_read() -> None:
    class Locked(Pocket):
        async def ready(self) -> None:
            raise ToolFailure("The secrets can't be read at the moment.", retryable=True, reached=False)

    tool = Scripted(failing(), effect="once", retries=1)
    outcome = await Toolbox([tool], sleep=_at_once).call(
        "weigh", {"item": "x"}, replace(CONTEXT, vault=Locked()), allowed=["weigh"]
    )
    assert (outcome.status, tool.calls) == ("error", [])
    assert "can't be read at the moment" in outcome.result


async def _at_once(_: float) -> None:
    return
