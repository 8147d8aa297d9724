"""Taking turns with a scripted model: the chat on one side, a server that plays replies on the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from pydantic import SecretStr

from cli.rehearsal import (
    ChatRequest,
    ModelServer,
    Raw,
    Reply,
)
from orchestrator.errors import (
    ModelError,
)
from orchestrator.models import ReasoningDelta, Restart, StreamingChat, TextDelta, Turn
from orchestrator.models.endpoint import Endpoint
from orchestrator.models.provider import ChatProvider, ResponseFormat
from orchestrator.models.retries import Retries

KEY = "sk-live-4f8a2b9c7d1e"
ASK = [SystemMessage("Be brief."), HumanMessage("Hello")]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@dataclass
class Script:
    """Gives its replies one after the other; the last one again and again."""

    replies: Sequence[Reply]
    played: int = 0

    def __call__(self, request: ChatRequest) -> Reply:
        self.played += 1
        return self.replies[min(self.played, len(self.replies)) - 1]


@asynccontextmanager
async def scripted(
    *replies: Reply, retries: int = 0, idle: float = 5.0
) -> AsyncIterator[tuple[StreamingChat, ModelServer]]:
    async with ModelServer(Script(replies)) as server, chat_at(server.url, retries=retries, idle=idle) as chat:
        yield chat, server


@asynccontextmanager
async def chat_at(
    url: str, *, retries: int = 0, idle: float = 5.0, connect: float = 5.0
) -> AsyncIterator[StreamingChat]:
    endpoint = Endpoint(url, SecretStr(KEY), connect_timeout=connect, idle_timeout=idle)
    yield StreamingChat.on(endpoint, "scripted", retries=Retries(retries, base=0.01))
    await endpoint.aclose()


@dataclass
class Taken:
    """What came of one turn: `turn`, or the `error` that ended it. `restarts`: texts that were taken back."""

    text: str = ""
    reasoning: str = ""
    turn: Turn | None = None
    error: ModelError | None = None
    restarts: list[str] = field(default_factory=list)

    @property
    def message(self) -> AIMessage:
        assert self.turn is not None, self.error
        return self.turn.message


async def take(
    chat: ChatProvider, tools: Sequence[dict[str, Any]] = (), *, response_format: ResponseFormat | None = None
) -> Taken:
    taken = Taken()
    try:
        async with aclosing(chat.stream_turn(ASK, tools=tools, response_format=response_format)) as pieces:
            async for piece in pieces:
                assert taken.turn is None, "the turn is the last piece"
                match piece:
                    case TextDelta(text):
                        taken.text += text
                    case ReasoningDelta(text):
                        taken.reasoning += text
                    case Restart():
                        taken.restarts.append(taken.text)
                        taken.text = ""
                    case Turn():
                        taken.turn = piece
    except ModelError as error:
        taken.error = error
    return taken


async def failure(*replies: Reply, retries: int = 0, idle: float = 5.0) -> ModelError:
    async with scripted(*replies, retries=retries, idle=idle) as (chat, _):
        error = (await take(chat)).error
    assert error is not None
    return error


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


def raw(*events: bytes, **options: Any) -> Reply:
    return Reply(fault=Raw([b"".join(b"data: " + event + b"\n\n" for event in events)], **options))
