"""A model of a plug-in, held to what our own models promise.

Whatever a plug-in raises becomes a `ModelError` that is safe to show, silence ends after the idle timeout, and the
turn says which model was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog
from langchain_core.messages import BaseMessage

from kernel.plugins import Plugin, plugins
from orchestrator.errors import ModelError, ModelTimedOut, ProviderFailed
from orchestrator.models.diagnosis import excerpt
from orchestrator.models.provider import ChatProvider, ProviderFactory, ResponseFormat
from orchestrator.models.turn import Piece, Turn

log = structlog.get_logger(__name__)


class PluginChat:
    """A `ChatProvider` around a plug-in's own. `idle_timeout`: seconds between two pieces."""

    def __init__(self, provider: str, model: str, chat: ChatProvider, *, idle_timeout: float) -> None:
        self._provider = provider
        self._model = model
        self._chat = chat
        self._idle_timeout = idle_timeout

    async def stream_turn(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        response_format: ResponseFormat | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """See `ChatProvider`."""
        turn = self._chat.stream_turn(messages, tools=tools, response_format=response_format)
        async with aclosing(turn) as pieces:
            while (piece := await self._next(pieces)) is not None:
                if isinstance(piece, Turn):
                    yield piece if piece.model else replace(piece, model=self._model)
                    return
                yield piece
        raise ProviderFailed(f"The model provider {self._provider!r} ended its answer without a turn.")

    async def _next(self, pieces: AsyncGenerator[Piece, None]) -> Piece | None:
        patience = asyncio.timeout(self._idle_timeout)
        try:
            async with patience:
                return await anext(pieces, None)
        except ModelError:
            raise
        except Exception as error:
            if patience.expired():
                raise ModelTimedOut(
                    f"The model provider {self._provider!r} stayed silent for too long.",
                    phase="idle",
                    suggestions=("Try again later.", "Raise the model's idle_timeout_seconds."),
                ) from None
            raise failed(self._provider, error) from None


def installed_providers() -> dict[str, ProviderFactory]:
    """The plug-ins of `longhaul.models` by name, loaded.

    Raises:
        BadPlugin: one can't be imported, or is no function.
    """
    return {name: _factory(plugin) for name, plugin in plugins("models").items()}


def _factory(plugin: Plugin) -> ProviderFactory:
    found = plugin.load()
    if not callable(found):
        raise plugin.bad(f"{plugin.target} is a {type(found).__name__} where a function from a ModelChoice is needed")
    return found


def failed(provider: str, error: Exception) -> ProviderFailed:
    """What a plug-in raised, in words that are safe to show."""
    what = f"{type(error).__name__}: {excerpt(str(error))}".removesuffix(": ")
    log.warning("model_provider_failed", provider=provider, error=what)
    return ProviderFailed(
        f"The model provider {provider!r} failed: {what}",
        suggestions=("Try again later.", "Check the settings of the plug-in and the model's name."),
    )
