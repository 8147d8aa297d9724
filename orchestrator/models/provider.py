"""The port that every chat model fills, and how a plug-in provides one.

A plug-in (entry-point group `longhaul.models`) is a function from a `ModelChoice` to a `ChatProvider`, or to any of
LangChain's chat models. It is called once for each different choice; its result may be asked by many runs at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import orjson
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, SystemMessage

from kernel.agent_config import ModelChoice
from orchestrator.models.turn import Piece


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the final answer must be: JSON that fits `schema`."""

    schema: Mapping[str, Any]
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        canonical = orjson.dumps(self.schema, option=orjson.OPT_SORT_KEYS)
        object.__setattr__(self, "digest", hashlib.sha256(canonical).digest())

    def field(self) -> dict[str, Any]:
        """The value of `response_format` in a chat completion request."""
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema}}

    def instruct(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The conversation with the format said in words, for models that know no such field."""
        schema = orjson.dumps(self.schema).decode()
        text = (
            "Your final answer must be one JSON value that fits the JSON Schema below, and nothing else: no prose "
            f"before or after it, no code fence.\n{schema}"
        )
        if messages and isinstance(messages[0], SystemMessage):
            return [SystemMessage(f"{messages[0].text}\n\n{text}"), *messages[1:]]
        return [SystemMessage(text), *messages]


class ChatProvider(Protocol):
    """A model that can be asked for a turn."""

    def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Asks the model and yields its answer as it comes: deltas, and as the last piece, and only then, the `Turn`.

        `tools` are definitions in OpenAI's format. The text of all `TextDelta`s, joined, is the content of the turn's
        message. Closing the generator early must stop the call.

        Raises:
            ModelError: the model gave no complete answer.
        """


ProviderFactory: TypeAlias = Callable[[ModelChoice], ChatProvider | BaseChatModel]
"""Raises ModelError, or anything else, when the choice can't be served; runs on a thread, so it may block."""
