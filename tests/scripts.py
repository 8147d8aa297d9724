"""The scripted model: a real OpenAI-compatible server whose answers each test writes.

Scripts go by the name of the model that is asked, and every script has a name of its own: tests, and runs within a
test, never take each other's answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeAlias

from cli.rehearsal import ChatRequest, ModelServer, Reply

Answer: TypeAlias = Reply | Callable[[ChatRequest], Reply]


class ScriptedModel:
    """Serves scripts. `script` returns the model name that an agent or a run must ask for."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._scripts: dict[str, list[Answer]] = {}
        self._asked: dict[str, list[ChatRequest]] = {}
        self.server = ModelServer(self._answer)

    @property
    def url(self) -> str:
        return self.server.url

    def script(self, *answers: Answer) -> str:
        """Takes down the answers to the first, second, … call; the last one also answers all further calls."""
        name = f"script-{next(self._numbers)}"
        self._scripts[name] = list(answers)
        self._asked[name] = []
        return name

    def asked(self, name: str) -> list[ChatRequest]:
        """The calls that the script got so far."""
        return self._asked[name]

    def _answer(self, request: ChatRequest) -> Reply:
        answers, asked = self._scripts[request.model], self._asked[request.model]
        asked.append(request)
        answer = answers[min(len(asked), len(answers)) - 1]
        return answer if isinstance(answer, Reply) else answer(request)


@asynccontextmanager
async def scripted_model() -> AsyncIterator[ScriptedModel]:
    """A model server for the time of the block."""
    model = ScriptedModel()
    async with model.server:
        yield model


def said(text: str) -> Reply:
    """A plain answer, streamed word by word."""
    words = text.split(" ")
    return Reply(tokens=[word if place == 0 else f" {word}" for place, word in enumerate(words)])
