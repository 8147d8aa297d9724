"""The endpoints of one worker, each with its one HTTP client and the chats on it.

The operator's endpoint stays. Of those that callers name, the last ones used are kept, and whichever has not been used
for a while is closed, so that neither connections nor keys of callers stay longer than they are needed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, TypeAlias

from pydantic import SecretStr

from kernel.agent_config import ModelChoice
from kernel.errors import BadSettings
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import Resolve, SystemResolver
from orchestrator.errors import ModelMisconfigured
from orchestrator.models.chat import StreamingChat
from orchestrator.models.endpoint import Endpoint, Guard
from orchestrator.models.retries import Retries

KEPT_CHATS: Final = 64
KEPT_ENDPOINTS: Final = 64
_IDLE_SECONDS: Final = 60.0

_Parameters: TypeAlias = tuple[float | None, float | None, int | None, str | None, int | None, float | None]


class ChatsOnEndpoint:
    """An endpoint, and a chat for each model and its parameters; the last 64 are kept."""

    def __init__(self, endpoint: Endpoint, retries: Retries) -> None:
        self.endpoint = endpoint
        self._retries = retries
        self._chats: OrderedDict[tuple[str, _Parameters], StreamingChat] = OrderedDict()

    def chat(self, model: str, choice: ModelChoice) -> StreamingChat:
        """The chat with `model` and the parameters of `choice`."""
        parameters = (
            choice.temperature,
            choice.top_p,
            choice.max_tokens,
            choice.reasoning_effort,
            choice.seed,
            choice.idle_timeout_seconds,
        )
        chat = self._chats.get((model, parameters))
        if chat is None:
            chat = self._chats[model, parameters] = StreamingChat.on(
                self.endpoint,
                model,
                temperature=choice.temperature,
                top_p=choice.top_p,
                max_tokens=choice.max_tokens,
                reasoning_effort=choice.reasoning_effort,
                seed=choice.seed,
                idle_timeout=choice.idle_timeout_seconds,
                retries=self._retries,
            )
            if len(self._chats) > KEPT_CHATS:
                self._chats.popitem(last=False)
        else:
            self._chats.move_to_end((model, parameters))
        return chat


class CallersEndpoints:
    """Endpoints by address and key, for addresses that callers name. Close it in the event loop that used it.

    Args:
        allow: `host:port` pairs that may be called although they are private.
        make: an endpoint at an address and with a key; the other arguments are `Endpoint`'s.
        idle: seconds without a call after which an endpoint's connections are closed.
        resolve: instead of the operating system's resolver.
    """

    def __init__(
        self,
        *,
        allow: tuple[str, ...],
        retries: Retries,
        connect_timeout: float,
        idle_timeout: float,
        idle: float = _IDLE_SECONDS,
        resolve: Resolve | None = None,
    ) -> None:
        self._gate = Gate(allow)
        self._retries = retries
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._idle = idle
        self._system: SystemResolver | None = None
        self._resolve = resolve
        self._kept: OrderedDict[tuple[str, SecretStr], ChatsOnEndpoint] = OrderedDict()
        self._open: set[Endpoint] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """How many endpoints hold a client."""
        return len(self._open)

    def at(self, base_url: str, key: SecretStr) -> ChatsOnEndpoint:
        """The endpoint at this address, with this key and no other.

        Raises:
            ModelAddressRefused: the address may not be called.
            ModelMisconfigured: the key can't be one.
        """
        place = self._kept.get((base_url, key))
        if place is not None:
            self._kept.move_to_end((base_url, key))
            return place
        try:
            endpoint = Endpoint(
                base_url,
                key,
                connect_timeout=self._connect_timeout,
                idle_timeout=self._idle_timeout,
                guard=Guard(self._gate, self._resolver()),
                on_open=self._opened,
            )
        except BadSettings:
            raise ModelMisconfigured(
                "The secret that the model's api_key names holds characters that no key has, such as a line break.",
                suggestions=("Store the key again, without anything around it.",),
            ) from None
        place = self._kept[base_url, key] = ChatsOnEndpoint(endpoint, self._retries)
        if len(self._kept) > KEPT_ENDPOINTS:
            _, dropped = self._kept.popitem(last=False)
            if not dropped.endpoint.answers:
                self._close(dropped.endpoint)
        return place

    async def aclose(self) -> None:
        """Closes all connections; answers that are still being read break off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for endpoint in list(self._open):
            self._close(endpoint)
        if self._closing:
            await asyncio.wait(self._closing)
        if self._system is not None:
            self._system.close()

    def _resolver(self) -> Resolve:
        if self._resolve is None:
            self._resolve = self._system = SystemResolver()
        return self._resolve

    def _opened(self, endpoint: Endpoint) -> None:
        self._open.add(endpoint)
        self._tick()

    def _tick(self) -> None:
        if self._timer is None and self._open:
            self._timer = asyncio.get_running_loop().call_later(self._idle / 2, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        idle = {e for e in self._open if not e.answers and now - e.used_at >= self._idle}
        for key, place in list(self._kept.items()):
            if place.endpoint in idle:
                del self._kept[key]
        for endpoint in idle:
            self._close(endpoint)
        self._tick()

    def _close(self, endpoint: Endpoint) -> None:
        self._open.discard(endpoint)
        task = asyncio.get_running_loop().create_task(endpoint.aclose(), name="close a model endpoint")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
