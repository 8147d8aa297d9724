"""Several models in order: the next one is asked when one fails, until one answers.

A model that failed in the middle of its answer has been heard already: then a `Restart` says that what came of it is
void. An endpoint that can't be reached at all ends it, for all models are behind it.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from langchain_core.messages import BaseMessage

from orchestrator.errors import ModelError, ModelUnreachable
from orchestrator.models.provider import ChatProvider, ResponseFormat
from orchestrator.models.turn import Piece, Restart, TextDelta

log = structlog.get_logger(__name__)


class Fallbacks:
    """A `ChatProvider` made of others, by the names of their models; at least one."""

    def __init__(self, models: Sequence[tuple[str, ChatProvider]]) -> None:
        self._models = models

    async def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """See `ChatProvider`.

        Raises:
            ModelError: the last one's, whose message also holds what the models before it said.
        """
        failed: list[tuple[str, ModelError]] = []
        for name, chat in self._models:
            begun = False
            try:
                turn = chat.stream_turn(messages, tools=tools, response_format=response_format)
                async with aclosing(turn) as pieces:
                    async for piece in pieces:
                        begun = begun or isinstance(piece, TextDelta)
                        yield piece
                return
            except ModelError as error:
                failed.append((name, error))
                if len(failed) == len(self._models) or isinstance(error, ModelUnreachable):
                    raise _of_all(failed) from None
                log.warning("model_fell_back", model=name, code=error.code, error=error.message)
            if begun:
                yield Restart(*failed[-1])


def _of_all(failed: Sequence[tuple[str, ModelError]]) -> ModelError:
    *earlier, (name, last) = failed
    if not earlier:
        return last
    said = " ".join(f"{model}: {error.message}" for model, error in earlier)
    whole = copy.copy(last)
    whole.message = f"None of {len(failed)} models answered. {name}: {last.message} Before it, {said}"
    whole.args = (whole.message,)
    whole.retryable = any(error.retryable for _, error in failed)
    whole.suggestions = tuple(dict.fromkeys(hint for _, error in reversed(failed) for hint in error.suggestions))
    return whole
