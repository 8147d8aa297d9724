"""The chat models of one worker: one HTTP client for the endpoint, one chat per model and parameters."""

from __future__ import annotations

from collections import OrderedDict

from langchain_core.messages import HumanMessage, SystemMessage

from kernel.settings import Settings
from orchestrator.models.chat import StreamingChat
from orchestrator.models.endpoint import Endpoint
from orchestrator.models.retries import Retries

_KEPT = 64


class Models:
    """Hands out chats on the endpoint that the settings name. Close it in the event loop that used it.

    Args:
        settings: `openai_*`, `llm_model` and `model_*` are read.
        backoff: seconds of the first pause between tries; later ones double it.
    """

    def __init__(self, settings: Settings, *, backoff: float = 0.25) -> None:
        self._default = settings.llm_model
        self._retries = Retries(settings.model_retries, backoff)
        self._endpoint = Endpoint(
            settings.openai_base_url,
            settings.openai_api_key,
            connect_timeout=settings.model_connect_timeout,
            idle_timeout=settings.model_idle_timeout,
        )
        self._chats: OrderedDict[tuple[str, float | None, int | None], StreamingChat] = OrderedDict()

    def chat(
        self, model: str | None = None, *, temperature: float | None = None, max_tokens: int | None = None
    ) -> StreamingChat:
        """The chat with `model`, or with the default model of the settings. The last 64 are kept."""
        key = (model or self._default, temperature, max_tokens)
        chat = self._chats.get(key)
        if chat is None:
            chat = StreamingChat.on(
                self._endpoint,
                key[0],
                temperature=temperature,
                max_tokens=max_tokens,
                retries=self._retries,
            )
            self._chats[key] = chat
            if len(self._chats) > _KEPT:
                self._chats.popitem(last=False)
        else:
            self._chats.move_to_end(key)
        return chat

    def warm(self) -> None:
        """Does what a first call would pay for: lazy imports, the default chat, a request built once."""
        self.chat().request_body([SystemMessage("warm"), HumanMessage("up")], None, {})

    async def aclose(self) -> None:
        """Closes the connections; answers that are still being read break off."""
        await self._endpoint.aclose()
