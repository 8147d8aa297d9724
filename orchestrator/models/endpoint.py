"""One OpenAI-compatible endpoint: its address, its key, and the one HTTP client of this process for it.

The client keeps connections alive, takes no proxy or credentials from the environment, follows no redirects
and keeps no cookies. The key lives here alone and leaves only as the `Authorization` header.

The operator's endpoint may be anywhere. One that a caller names is guarded: each address that it is connected to
passes the gate of outgoing requests first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from pydantic import SecretStr
from yarl import URL

from kernel.errors import BadSettings
from orchestrator.egress.errors import EgressRefused
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import GatedResolver, Resolve
from orchestrator.errors import ModelAddressRefused, ModelError
from orchestrator.models.diagnosis import CALLERS, OPERATORS, Diagnosis

_MAX_ERROR_BODY = 65_536
_ERROR_BODY_PATIENCE = 5.0
_READ_SIZE = 65_536


class Answer:
    """A 2xx answer whose body is still to be read. Close it always: that frees or closes its connection."""

    __slots__ = ("_closed", "_diagnosis", "_idle_timeout", "_response")

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        diagnosis: Diagnosis,
        idle_timeout: float,
        closed: Callable[[], None],
    ) -> None:
        self._response = response
        self._diagnosis = diagnosis
        self._idle_timeout = idle_timeout
        self._closed: Callable[[], None] | None = closed

    async def read(self) -> bytes:
        """What has arrived, at least one byte; empty at the end of the body.

        Raises:
            ModelTimedOut: silence for the idle timeout. ModelBrokeOff: the connection closed before the end.
        """
        try:
            # aiohttp's own timer is not enough: after a malformed chunk it drops it and wakes no reader.
            async with asyncio.timeout(self._idle_timeout):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self._diagnosis.of_exception(error) from None

    async def settle(self, patience: float) -> None:
        """Reads away a short rest within `patience` seconds, so that the connection can be used again."""
        with contextlib.suppress(ModelError, TimeoutError):
            async with asyncio.timeout(patience):
                while await self.read():
                    pass

    def close(self) -> None:
        """Frees the connection if the body was read to its end, closes it otherwise."""
        self._response.close()
        if self._closed is not None:
            self._closed()
            self._closed = None


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands between an endpoint that a caller names and the network."""

    gate: Gate
    resolve: Resolve


class Endpoint:
    """Where chat completions are asked for. Must be used in one event loop, and closed in it.

    Args:
        base_url: such as `https://api.openai.com/v1`; http or https.
        api_key: may be empty for endpoints that want none.
        connect_timeout: seconds for name lookup, connection and TLS together.
        idle_timeout: seconds without a byte, before and within an answer.
        guard: for an address that a caller names.
        on_open: told when the client is made; it is made anew when the endpoint is used after `aclose`.

    Attributes:
        answers: how many calls are under way.
        used_at: the event loop's time at the end of the last one.

    Raises:
        BadSettings: `base_url` is no http address, or the key can't be sent in a header.
        ModelAddressRefused: the guard does not let `base_url` through.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr,
        *,
        connect_timeout: float,
        idle_timeout: float,
        guard: Guard | None = None,
        on_open: Callable[[Endpoint], None] | None = None,
    ) -> None:
        if guard is not None:
            try:
                base_url = str(guard.gate.url(base_url))
            except EgressRefused as error:
                raise _refused(error) from None
        try:
            url = URL(base_url)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise BadSettings("OPENAI_BASE_URL must be an address such as https://api.openai.com/v1")
        key = api_key.get_secret_value().strip()
        if not (key.isascii() and key.isprintable()):
            raise BadSettings("OPENAI_API_KEY holds characters that no key has, such as a line break")
        self.base_url = str(url.with_user(None))
        words = OPERATORS if guard is None else CALLERS
        self.diagnosis = Diagnosis(str(url.with_user(None).origin()), key, words)
        self.answers = 0
        self.used_at = 0.0
        self._guard = guard
        self._on_open = on_open
        self._chat_url = (url.with_user(None) / "chat/completions").with_query(url.query)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # compression would hold back single tokens
            "User-Agent": "longhaul",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._idle_timeout = idle_timeout
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, body: bytes, *, idle_timeout: float | None = None) -> Answer:
        """Posts a chat completion request and waits for the head of the answer.

        Raises:
            ModelError: not reached, timed out, or answered with anything but 2xx.
        """
        idle = idle_timeout or self._idle_timeout
        timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_timeout, sock_read=idle)
        self.answers += 1
        try:
            client = self._client()
            response = await client.post(self._chat_url, data=body, allow_redirects=False, timeout=timeout)
        except BaseException as error:
            self._ended()
            if isinstance(error, EgressRefused):
                raise _refused(error) from None
            if isinstance(error, aiohttp.ClientError | OSError):
                raise self.diagnosis.of_exception(error) from None
            raise
        answer = Answer(response, self.diagnosis, idle, self._ended)
        if 200 <= response.status <= 299:
            return answer
        try:
            text = bytearray()
            with contextlib.suppress(ModelError, TimeoutError):  # the status says enough
                async with asyncio.timeout(_ERROR_BODY_PATIENCE):
                    while len(text) < _MAX_ERROR_BODY and (data := await answer.read()):
                        text += data
            raise self.diagnosis.of_response(response.status, response.headers, bytes(text))
        finally:
            answer.close()

    async def aclose(self) -> None:
        """Closes all connections; answers that are still being read break off."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _ended(self) -> None:
        self.answers -= 1
        self.used_at = asyncio.get_running_loop().time()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:  # not in the constructor: a session belongs to a running loop
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                read_bufsize=_READ_SIZE,
            )
            if self._on_open is not None:
                self._on_open(self)
        return self._session

    def _connector(self) -> aiohttp.TCPConnector:
        # limit=0: the worker's slots are the limit
        if self._guard is None:
            return aiohttp.TCPConnector(limit=0)
        gate = self._guard.gate
        return aiohttp.TCPConnector(
            limit=0,
            resolver=GatedResolver(gate, self._guard.resolve),
            socket_factory=gate.socket,
            use_dns_cache=False,
        )


def _refused(error: EgressRefused) -> ModelAddressRefused:
    return ModelAddressRefused(
        f"The model's base_url can't be called: {error.message}.",
        suggestions=(
            "Set base_url to the public address of an OpenAI-compatible API.",
            "The operator can allow a private one, as host:port, in LONGHAUL_EGRESS_ALLOW.",
        ),
    )
