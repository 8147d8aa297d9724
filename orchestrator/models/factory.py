"""The chat models of one worker: which one a choice means, and with which client and key it is asked.

The deployment's key goes to the deployment's endpoint and nowhere else. An address that a caller names gets the key
that the caller names with it, or none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import SecretStr

from kernel.agent_config import ModelChoice
from kernel.settings import Settings
from orchestrator.egress.resolver import Resolve
from orchestrator.errors import ModelError, ModelMisconfigured, UnknownProvider
from orchestrator.models.chat import StreamingChat
from orchestrator.models.endpoint import Endpoint
from orchestrator.models.endpoints import CallersEndpoints, ChatsOnEndpoint
from orchestrator.models.fallbacks import Fallbacks
from orchestrator.models.plugin import PluginChat, failed
from orchestrator.models.provider import ChatProvider, ProviderFactory
from orchestrator.models.retries import Retries
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import Vault

_KEPT_PLUGINS: Final = 64
_DEFAULT: Final = ModelChoice()


class Models:
    """Hands out chats: on the endpoint that the settings name, on those that callers name, and of plug-ins. Close it
    in the event loop that used it.

    Args:
        settings: `openai_*`, `llm_model`, `model_*` and `egress_allow` are read.
        backoff: seconds of the first pause between tries; later ones double it.
        providers: plug-ins by their names.
        idle: seconds without a call after which a caller's endpoint is closed.
        resolve: instead of the operating system's resolver, for callers' endpoints.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        backoff: float = 0.25,
        providers: Mapping[str, ProviderFactory] | None = None,
        idle: float = 60.0,
        resolve: Resolve | None = None,
    ) -> None:
        self._default = settings.llm_model
        self._idle_timeout = settings.model_idle_timeout
        retries = Retries(settings.model_retries, backoff)
        endpoint = Endpoint(
            settings.openai_base_url,
            settings.openai_api_key,
            connect_timeout=settings.model_connect_timeout,
            idle_timeout=settings.model_idle_timeout,
        )
        self._own = ChatsOnEndpoint(endpoint, retries)
        self._callers = CallersEndpoints(
            allow=settings.egress_allow,
            retries=retries,
            connect_timeout=settings.model_connect_timeout,
            idle_timeout=settings.model_idle_timeout,
            idle=idle,
            resolve=resolve,
        )
        self._providers = providers or {}
        self._plugins: OrderedDict[str, PluginChat] = OrderedDict()

    @property
    def default(self) -> str:
        """The name of the model of agents that name none."""
        return self._default

    @property
    def open_endpoints(self) -> int:
        """How many endpoints of callers hold a client."""
        return self._callers.open

    def chat(
        self, model: str | None = None, *, temperature: float | None = None, max_tokens: int | None = None
    ) -> StreamingChat:
        """The chat with `model`, or with the default model of the settings, on the deployment's endpoint."""
        choice = ModelChoice(temperature=temperature, max_tokens=max_tokens)
        return self._own.chat(model or self._default, choice)

    async def choose(self, choice: ModelChoice, vault: Vault) -> ChatProvider:
        """The model of this choice, and behind it its fallbacks. Waits for nothing where the choice names neither an
        address nor a provider.

        Raises:
            ModelMisconfigured: or one of its children; the choice can't be used, and says why.
        """
        first = choice.name or self._default
        if choice.provider is None and choice.base_url is None and not choice.fallbacks:
            return self._own.chat(first, choice)
        names = list(dict.fromkeys((first, *(choice.fallbacks or ()))))
        if choice.provider is not None:
            chats: list[tuple[str, ChatProvider]] = [(name, await self._plugin(name, choice)) for name in names]
        else:
            place = self._own if choice.base_url is None else await self._callers_place(choice.base_url, choice, vault)
            chats = [(name, place.chat(name, choice)) for name in names]
        return chats[0][1] if len(chats) == 1 else Fallbacks(chats)

    def warm(self) -> None:
        """Does what a first call would pay for: lazy imports, the default chat, a request built once."""
        self._own.chat(self._default, _DEFAULT).request_body([SystemMessage("warm"), HumanMessage("up")], None, {})

    async def aclose(self) -> None:
        """Closes the connections; answers that are still being read break off."""
        await self._own.endpoint.aclose()
        await self._callers.aclose()

    async def _callers_place(self, base_url: str, choice: ModelChoice, vault: Vault) -> ChatsOnEndpoint:
        key = SecretStr("")
        if choice.api_key is not None:
            try:
                key = SecretStr(await vault.reveal(choice.api_key))
            except ToolFailure as error:
                raise ModelMisconfigured(
                    f"The model's api_key can't be used: {error.message}",
                    suggestions=("Store the secret for the org, or send it with the run.",),
                ) from None
        return self._callers.at(base_url, key)

    async def _plugin(self, name: str, choice: ModelChoice) -> PluginChat:
        provider = choice.provider or ""
        if choice.base_url is not None:
            # The plug-in would call it past the gate of outgoing requests.
            raise ModelMisconfigured(
                f"The model has a base_url and the provider {provider!r}: a provider has its own address.",
                suggestions=("Leave out one of the two.",),
            )
        factory = self._providers.get(provider)
        if factory is None:
            known = ", ".join(sorted(self._providers)) or "none"
            raise UnknownProvider(
                f"There is no model provider {provider!r} on this worker. There are: {known}.",
                suggestions=(
                    "Name one of those, or leave provider out.",
                    "The operator can install a plug-in of the entry-point group longhaul.models.",
                ),
            )
        asked = choice.model_copy(update={"name": name, "fallbacks": None})
        key = asked.model_dump_json()
        chat = self._plugins.get(key)
        if chat is None:
            chat = await self._made(provider, name, factory, asked)
            self._plugins[key] = chat
            if len(self._plugins) > _KEPT_PLUGINS:
                self._plugins.popitem(last=False)
        else:
            self._plugins.move_to_end(key)
        return chat

    async def _made(self, provider: str, name: str, factory: ProviderFactory, choice: ModelChoice) -> PluginChat:
        try:
            made = await asyncio.to_thread(factory, choice)
        except ModelError:
            raise
        except Exception as error:
            raise failed(provider, error) from None
        if isinstance(made, BaseChatModel) and not isinstance(made, StreamingChat):
            from orchestrator.models.langchain import LangChainChat

            made = LangChainChat(made)
        idle = choice.idle_timeout_seconds or self._idle_timeout
        return PluginChat(provider, name, made, idle_timeout=idle)
