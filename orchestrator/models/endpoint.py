"""One OpenAI-compatible endpoint: its address, its key, and the one HTTP client of this process for it.

The client keeps connections alive, takes no proxy or credentials from the environment, follows no redirects
and keeps no cookies. The key lives here alone and leaves only as the `Authorization` header.
"""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
from pydantic import SecretStr
from yarl import URL

from kernel.errors import BadSettings
from orchestrator.errors import ModelError
from orchestrator.models.diagnosis import Diagnosis

_MAX_ERROR_BODY = 65_536
_ERROR_BODY_PATIENCE = 5.0
_READ_SIZE = 65_536


class Answer:
    """A 2xx answer whose body is still to be read. Close it always: that frees or closes its connection."""

    __slots__ = ("_diagnosis", "_idle_timeout", "_response")

    def __init__(self, response: aiohttp.ClientResponse, diagnosis: Diagnosis, idle_timeout: float) -> None:
        self._response = response
        self._diagnosis = diagnosis
        self._idle_timeout = idle_timeout

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


class Endpoint:
    """Where chat completions are asked for. Must be used in one event loop, and closed in it.

    Args:
        base_url: such as `https://api.openai.com/v1`; http or https.
        api_key: may be empty for endpoints that want none.
        connect_timeout: seconds for name lookup, connection and TLS together.
        idle_timeout: seconds without a byte, before and within an answer.

    Raises:
        BadSettings: `base_url` is no http address, or the key can't be sent in a header.
    """

    def __init__(self, base_url: str, api_key: SecretStr, *, connect_timeout: float, idle_timeout: float) -> None:
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
        self.diagnosis = Diagnosis(str(url.with_user(None).origin()), key)
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
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_read=idle_timeout)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, body: bytes) -> Answer:
        """Posts a chat completion request and waits for the head of the answer.

        Raises:
            ModelError: not reached, timed out, or answered with anything but 2xx.
        """
        try:
            response = await self._client().post(self._chat_url, data=body, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise self.diagnosis.of_exception(error) from None
        answer = Answer(response, self.diagnosis, self._idle_timeout)
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
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:  # not in the constructor: a session belongs to a running loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the worker's slots are the limit
                headers=self._headers,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                read_bufsize=_READ_SIZE,
            )
        return self._session
