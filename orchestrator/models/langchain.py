"""Any of LangChain's chat models as a `ChatProvider`.

LangChain knows no one field for a response format, so the model is told it in words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from kernel.events import printable
from orchestrator.errors import ProviderFailed
from orchestrator.models.provider import ResponseFormat
from orchestrator.models.turn import (
    MAX_ANSWER,
    MAX_TOOL_CALLS,
    Piece,
    ReasoningDelta,
    TextDelta,
    Turn,
    Usage,
    sorted_calls,
)

_THOUGHTS = ("reasoning", "thinking")


class LangChainChat:
    """A `ChatProvider` around a chat model of LangChain's."""

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model

    async def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """See `ChatProvider`. Besides ModelError, whatever the model raises."""
        asked = list(messages) if response_format is None else response_format.instruct(messages)
        model = self._model.bind_tools(tools) if tools else self._model
        whole: AIMessageChunk | None = None
        said: list[str] = []
        size = 0
        answer = cast("AsyncGenerator[AIMessageChunk, None]", model.astream(asked))
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                whole = chunk if whole is None else whole + chunk
                thought, text = printable(_thoughts(chunk)), printable(chunk.text)
                size += len(thought) + len(text)
                if size > MAX_ANSWER:
                    raise ProviderFailed(f"The model's answer is longer than {MAX_ANSWER} characters.")
                if thought:
                    yield ReasoningDelta(thought)
                if text:
                    said.append(text)
                    yield TextDelta(text)
        if whole is None:
            raise ProviderFailed("The model gave no answer.", retryable=True)
        yield _turn(whole, "".join(said))


def _turn(whole: AIMessageChunk, text: str) -> Turn:
    asked = [(call["id"] or "", call["name"], json.dumps(call["args"])) for call in whole.tool_calls]
    asked += [(call["id"] or "", call["name"] or "", call["args"] or "") for call in whole.invalid_tool_calls]
    if len(asked) > MAX_TOOL_CALLS:
        raise ProviderFailed(f"The model's answer has more than {MAX_TOOL_CALLS} tool calls.")
    valid, invalid = sorted_calls((id_, printable(name), printable(raw)) for id_, name, raw in asked)
    about = whole.response_metadata
    reason = about.get("finish_reason") or about.get("stop_reason") or ("tool_calls" if asked else "stop")
    used = whole.usage_metadata
    return Turn(
        AIMessage(
            text,
            tool_calls=valid,
            invalid_tool_calls=invalid,
            response_metadata={"finish_reason": str(reason)[:64]},
        ),
        Usage(used["input_tokens"], used["output_tokens"]) if used else Usage(),
        str(reason)[:64],
    )


def _thoughts(chunk: AIMessageChunk) -> str:
    """What the model thinks: LangChain's packages put it into content blocks or beside the content."""
    beside = chunk.additional_kwargs.get("reasoning_content")
    if isinstance(beside, str) and beside:
        return beside
    if isinstance(chunk.content, str):
        return ""
    found = []
    for block in chunk.content:
        if isinstance(block, dict) and block.get("type") in _THOUGHTS:
            found += [text for name in _THOUGHTS if isinstance(text := block.get(name), str)]
    return "".join(found)
