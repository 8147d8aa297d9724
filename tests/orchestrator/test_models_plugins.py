"""Models of plug-ins: any of LangChain's chat models, and providers of one's own, held to what our own promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from kernel.agent_config import ModelChoice
from kernel.plugins import BadPlugin
from orchestrator.errors import ModelError, ModelOverloaded, ModelTimedOut, ProviderFailed
from orchestrator.models import Models, Piece, ResponseFormat, TextDelta, Turn, Usage
from orchestrator.models.plugin import installed_providers
from orchestrator.models.provider import ProviderFactory
from orchestrator.tools.tool import NoSecrets
from tests.orchestrator.test_models_endpoints import settings
from tests.orchestrator.turns import WEATHER, Taken, take

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Canned(BaseChatModel):
    """A chat model of LangChain's that streams these chunks, and notes what it was asked."""

    chunks: list[AIMessageChunk]
    asked: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "canned"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.asked.append((messages, kwargs))
        for chunk in self.chunks:
            yield ChatGenerationChunk(message=chunk)


class OfOnesOwn:
    """A provider that yields these pieces, and raises what is no piece."""

    def __init__(self, *pieces: Piece | Exception, pause: float = 0.0) -> None:
        self._pieces = pieces
        self._pause = pause

    async def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if self._pause:
                await asyncio.sleep(self._pause)


async def asked(factory: ProviderFactory, choice: ModelChoice | None = None, **options: Any) -> Taken:
    models = Models(settings("http://127.0.0.1:9/v1"), providers={"acme": factory})
    try:
        chat = await models.choose(choice or ModelChoice(provider="acme", name="m-1"), NoSecrets())
        return await take(chat, **options)
    finally:
        await models.aclose()


async def test_a_chat_model_of_langchain_answers() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hello from LangChain")]))
    taken = await asked(lambda choice: model)
    assert taken.text == taken.message.content == "Hello from LangChain"
    assert taken.turn is not None
    assert (taken.turn.model, taken.turn.finish_reason, taken.turn.usage) == ("m-1", "stop", Usage())


async def test_reasoning_tool_calls_and_usage_of_a_langchain_model_come_through() -> None:
    chunks = [
        AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm "}),
        AIMessageChunk(content=[{"type": "thinking", "thinking": "so"}]),
        AIMessageChunk(content=[{"type": "text", "text": "Let me "}]),
        AIMessageChunk(content=[{"type": "text", "text": "look\x00."}]),
        AIMessageChunk(
            content="",
            tool_call_chunks=[
                tool_call_chunk(name="weather", args='{"city": "Ber', id="same", index=0),
                tool_call_chunk(name="weather", args="nonsense", id="same", index=1),
            ],
        ),
        AIMessageChunk(
            content="",
            tool_call_chunks=[tool_call_chunk(name=None, args='gen"}', id=None, index=0)],
            usage_metadata=UsageMetadata(input_tokens=7, output_tokens=3, total_tokens=10),
            response_metadata={"stop_reason": "tool_use"},
        ),
    ]
    model = Canned(chunks=chunks)
    taken = await asked(lambda choice: model, tools=[WEATHER])
    assert (taken.reasoning, taken.text) == ("hm so", "Let me look\ufffd.")
    assert taken.turn is not None
    assert (taken.turn.usage, taken.turn.finish_reason) == (Usage(7, 3), "tool_use")
    [call], [wrong] = taken.message.tool_calls, taken.message.invalid_tool_calls
    assert call["args"] == {"city": "Bergen"}
    assert wrong["args"] == "nonsense"
    assert call["id"] != wrong["id"]
    assert model.asked[0][1]["tools"] == [WEATHER]


async def test_a_langchain_model_is_told_the_response_format_in_words() -> None:
    model = Canned(chunks=[AIMessageChunk(content='{"city": "Bergen"}')])
    taken = await asked(lambda choice: model, response_format=ResponseFormat(SCHEMA))
    assert taken.text == '{"city": "Bergen"}'
    [(messages, _)] = model.asked
    assert messages[0].type == "system"
    assert messages[0].text.startswith("Be brief.")
    assert '"required":["city"]' in messages[0].text


async def test_a_choice_is_made_into_a_model_once() -> None:
    made: list[ModelChoice] = []

    def factory(choice: ModelChoice) -> BaseChatModel:
        made.append(choice)
        return Canned(chunks=[AIMessageChunk(content=str(choice.name))])

    models = Models(settings("http://127.0.0.1:9/v1"), providers={"acme": factory})
    for name in ("a", "b", "a"):
        chat = await models.choose(ModelChoice(provider="acme", name=name, temperature=0.5), NoSecrets())
        assert (await take(chat)).text == name
    await models.aclose()
    assert [(choice.name, choice.temperature) for choice in made] == [("a", 0.5), ("b", 0.5)]


async def test_models_of_one_provider_are_fallbacks_of_each_other() -> None:
    def factory(choice: ModelChoice) -> OfOnesOwn:
        done = Turn(AIMessage("whole"), Usage(1, 1), "stop")
        return OfOnesOwn(TextDelta("half"), RuntimeError("oh")) if choice.name == "a" else OfOnesOwn(done)

    taken = await asked(factory, ModelChoice(provider="acme", name="a", fallbacks=["b"]))
    assert taken.restarts == ["half"]
    assert taken.turn is not None
    assert taken.turn.model == "b"


async def test_what_a_provider_raises_is_an_error_without_its_keys() -> None:
    raised = RuntimeError("could not log in with sk-proj-Ab12Cd34Ef56Gh78\nsorry")
    error = (await asked(lambda choice: OfOnesOwn(TextDelta("a"), raised))).error
    assert isinstance(error, ProviderFailed)
    assert "RuntimeError: could not log in with [redacted] sorry" in error.message
    assert "'acme'" in error.message
    assert error.suggestions


async def test_an_error_of_ours_that_a_provider_raises_stays_as_it_is() -> None:
    raised = ModelOverloaded("too much to do")
    assert (await asked(lambda choice: OfOnesOwn(raised))).error is raised


async def test_a_provider_that_falls_silent_times_out() -> None:
    choice = ModelChoice(provider="acme", idle_timeout_seconds=0.05)
    error = (await asked(lambda choice: OfOnesOwn(TextDelta("a"), pause=60), choice)).error
    assert isinstance(error, ModelTimedOut)


async def test_a_provider_without_a_turn_has_failed() -> None:
    assert isinstance((await asked(lambda choice: OfOnesOwn(TextDelta("a")))).error, ProviderFailed)
    assert isinstance((await asked(lambda choice: Canned(chunks=[]))).error, ModelError)


async def test_a_factory_that_breaks_says_so() -> None:
    def factory(choice: ModelChoice) -> OfOnesOwn:
        raise KeyError("ACME_TOKEN")

    with pytest.raises(ProviderFailed, match="KeyError: 'ACME_TOKEN'"):
        await asked(factory)


# found by their entry points


def test_plug_ins_are_found_by_their_entry_points_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, monkeypatch, "parrots = parrot_models:parrot")
    (tmp_path / "parrot_models.py").write_text("def parrot(choice):\n    return choice.name\n")
    [parrot] = [factory for name, factory in installed_providers().items() if name == "parrots"]
    assert parrot(ModelChoice(name="polly")) == "polly"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("target", ["missing_models:parrot", "json:nothing", "math:pi"])
def test_a_plug_in_that_is_no_function_keeps_a_worker_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    distribution(tmp_path, monkeypatch, f"broken = {target}")
    with pytest.raises(BadPlugin, match=r"'broken'.*longhaul\.models"):
        installed_providers()


def distribution(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """Installs a distribution with one plug-in for the time of the test."""
    info = folder / "acme_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[longhaul.models]\n{entry}\n")
    monkeypatch.syspath_prepend(str(folder))
