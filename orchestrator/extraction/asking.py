"""Asking a model for JSON of one shape: what does not fit is sent back with what is wrong, twice at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from langchain_core.messages import BaseMessage

from kernel.errors import LonghaulError
from orchestrator.models.provider import ChatProvider
from orchestrator.models.turn import Turn, Usage
from orchestrator.structured import MOST_REPAIRS, AnswerSchema, Misfit, correction

T = TypeVar("T")

LONGEST: Final = 120.0
"""Seconds that one answer may take."""


class ExtractionFailed(LonghaulError):
    """The model gave nothing that can be used. To be tried again."""

    code = "extraction_failed"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model has used."""

    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, usage: Usage) -> Answered:
        """With one more answer."""
        return Answered(self.input_tokens + usage.input_tokens, self.output_tokens + usage.output_tokens)


async def ask(
    chat: ChatProvider,
    messages: Sequence[BaseMessage],
    schema: Mapping[str, Any],
    read: Callable[[Any, bool], T | list[str]],
    used: Callable[[Usage], None],
) -> T:
    """What `read` makes of an answer that fits `schema`.

    Args:
        read: called in a thread; gets the value, and whether this is the last try; gives a list of problems where it
            is not good enough.
        used: is told what each answer has cost.

    Raises:
        ExtractionFailed: no answer fits.
        ModelError: the model could not be asked.
    """
    wanted = AnswerSchema(schema)
    told = list(messages)
    misfit: Misfit | None = None
    for attempt in range(MOST_REPAIRS + 1):
        turn = await _turn(chat, told, wanted)
        used(turn.usage)
        text = str(turn.message.text)
        found = wanted.read(text)
        if isinstance(found, str):
            made = await asyncio.to_thread(read, orjson.loads(found), attempt == MOST_REPAIRS)
            if not isinstance(made, list):
                return made
            found = Misfit(text, made)
        misfit = found
        # Of the drafts only the last one is told: each was corrected in whole.
        told = [*messages, *correction(misfit.draft())]
    assert misfit is not None
    raise ExtractionFailed(
        f"The model was asked {MOST_REPAIRS + 1} times, and no answer fits: {'; '.join(misfit.problems)[:500]}",
        suggestions=("choose a model that is better at structured answers: LONGHAUL_EXTRACTION_MODEL",),
    )


async def _turn(chat: ChatProvider, messages: Sequence[BaseMessage], wanted: AnswerSchema) -> Turn:
    turn: Turn | None = None
    try:
        async with (
            asyncio.timeout(LONGEST),
            aclosing(chat.stream_turn(messages, tools=(), response_format=wanted.format)) as pieces,
        ):
            async for piece in pieces:
                if isinstance(piece, Turn):
                    turn = piece
    except TimeoutError:
        raise ExtractionFailed(f"The model did not answer within {LONGEST:g} seconds.") from None
    if turn is None:
        raise ExtractionFailed("The model's answer has no end.")
    return turn
