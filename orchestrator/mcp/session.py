"""One live session with an MCP server. Needs the mcp package.

The package's task groups must be left by the task that entered them, so a session has one task of its own that opens,
keeps and closes it. Every call is another task: whoever waits for it may be cancelled at any moment, at once, and the
session lives on. It ends when it has been idle for long, when it is told to, or when the server is gone; calls that
were under way then fail, and say that the server may have seen them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias

import mcp_types as types
import structlog
from mcp.client.session import ClientSession, IncomingMessage
from mcp.client.subscriptions import listen
from mcp.shared.exceptions import MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from kernel.effects import EffectClass
from orchestrator.egress import EgressRefused
from orchestrator.mcp.content import listed, result
from orchestrator.mcp.faults import Faults
from orchestrator.mcp.greeting import greet
from orchestrator.mcp.listing import EFFECT, KEY, ListedTool
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.results import clean, clip
from orchestrator.tools.tool import JSONValue

log = structlog.get_logger(__name__)

# They would log what servers send, which may be anything, and every request's URL.
for _talkative in ("mcp", "client", "httpx2", "httpcore2"):
    logging.getLogger(_talkative).setLevel(logging.CRITICAL + 1)

Streams: TypeAlias = Callable[[Faults, Callable[[str], None]], AbstractAsyncContextManager[tuple[Any, Any]]]
"""Opens a transport, given where it leaves faults and what it calls when the server is gone."""

_FAREWELL: Final = 10.0
_LAST_WORDS: Final = 2.0
_PAGES: Final = 20
_TOOLS: Final = 512
_ROUNDS: Final = 20
_ERROR_BYTES: Final = 4_096
_ANSWERS: Final[TypeAdapter[types.CallToolResult | types.InputRequiredResult]] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)


class Session:
    """A session that is being opened or is open.

    Args:
        name: of the server, for messages.
        streams: its transport.
        handshake: the server is known to speak a protocol with a handshake, so it is not asked first.
        idle: seconds without a call after which the session closes.
        on_change: called when the server says that its tools have changed.
        on_end: called once, when the session is over; whether it was the server's doing, and why.
    """

    def __init__(
        self,
        name: str,
        streams: Streams,
        *,
        handshake: bool,
        idle: float,
        on_change: Callable[[], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self._name = name
        self._streams = streams
        self._handshake = handshake
        self._idle = idle
        self._on_change = on_change
        self._on_end = on_end
        self._faults = Faults()
        self._calls: set[asyncio.Task[JSONValue]] = set()
        self._wake = asyncio.Event()
        self._told_to_end = False
        self._lost: str | None = None
        self._heard = 0.0
        self._client: ClientSession | None = None
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self.used = self._loop.time()
        self._owner = asyncio.create_task(self._own(), name=f"mcp {name}")

    @property
    def usable(self) -> bool:
        """Whether calls may be made: open, and not about to close."""
        return self._client is not None and not self._told_to_end and self._lost is None and not self._owner.done()

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    @property
    def protocol(self) -> str:
        """The version that was agreed on."""
        assert self._client is not None
        return self._client.protocol_version or ""

    @property
    def handshake(self) -> bool:
        """Whether the server speaks a protocol with a handshake."""
        return self.protocol in HANDSHAKE_PROTOCOL_VERSIONS

    async def opened(self, seconds: float) -> None:
        """Waits until the session is open.

        Raises:
            ToolFailure: it does not open, or not in time; it is closed then.
        """
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._opened)
        except TimeoutError:
            await self.close()
            raise ToolFailure(
                f"The MCP server {self._name!r} did not open within {seconds:g} s.", reached=False
            ) from None
        except BaseException:
            await self.close()
            raise

    async def tools(self, seconds: float) -> list[ListedTool]:
        """What the server offers now.

        Raises:
            ToolFailure: it does not say.
        """
        return await self._made(self._list(), seconds, what="to list its tools")  # type: ignore[return-value]

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, effect: EffectClass, key: str, seconds: float
    ) -> JSONValue:
        """Calls a tool. `effect` and `key` travel along, for servers that know calls again by their key.

        Raises:
            ToolFailure: no result, or one that says that the tool failed.
        """
        return await self._made(self._call(tool, dict(arguments), {EFFECT: effect, KEY: key}), seconds, what="the call")

    def end(self) -> None:
        """Closes the session soon, without waiting for it."""
        self._told_to_end = True
        self._wake.set()

    async def close(self) -> None:
        """Closes the session: returns when its task has ended."""
        self.end()
        if self._client is None:
            self._owner.cancel()
        _, late = await asyncio.wait({self._owner}, timeout=_FAREWELL)
        if late:
            log.error("mcp_session_does_not_close", server=self._name)
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=_FAREWELL)

    # the task of the session

    async def _own(self) -> None:
        why: str | None = None
        failure: ToolFailure | None = None
        try:
            async with (
                self._streams(self._faults, self._gone) as (incoming, outgoing),
                ClientSession(
                    incoming,
                    outgoing,
                    message_handler=self._news,
                    client_info=types.Implementation(name="longhaul", version="1"),
                ) as client,
            ):
                try:
                    await greet(client, self._faults, handshake=self._handshake)
                    self._client = client
                    self.used = self._loop.time()
                    if not self._opened.done():
                        self._opened.set_result(None)
                    await self._stay(client)
                finally:
                    await self._end_calls()
            why = None if self._told_to_end else self._lost
        except asyncio.CancelledError:
            if self._client is not None and not self._told_to_end:
                why = "it was lost"  # a task group of the transport broke
            if (task := asyncio.current_task()) is not None and task.cancelling() and not self._told_to_end:
                raise
        except Exception as error:
            failure = self._told(error)
            why = failure.message
        finally:
            self._lost = self._lost or "it was closed"
            if not self._opened.done():
                self._opened.set_exception(failure or self._not_available(self._lost))
                self._opened.exception()  # nobody may be left to hear it
            self._on_end(why)

    def _not_available(self, why: str) -> ToolFailure:
        return ToolFailure(f"The MCP server {self._name!r} is not available: {why}.", reached=False)

    async def _stay(self, client: ClientSession) -> None:
        listening = asyncio.create_task(self._listen(client))
        try:
            while not self._told_to_end and self._lost is None:
                self._wake.clear()
                left = None if self._calls else self.used + self._idle - self._loop.time()
                if left is not None and left <= 0:
                    self._told_to_end = True
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()
            await self._last_words()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, client: ClientSession) -> None:
        """Hears of changes from servers of the newer protocol, which say them only to those who ask."""
        capabilities = client.server_capabilities
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (
            capabilities and capabilities.tools and capabilities.tools.list_changed
        ):
            return
        try:
            async with listen(client, tools_list_changed=True) as changes:
                async for _ in changes:
                    self._on_change()
        except Exception as error:  # the list is read again in some minutes all the same
            log.debug("mcp_changes_not_heard", server=self._name, error=type(error).__name__)

    async def _news(self, message: IncomingMessage) -> None:
        self._heard = self._loop.time()
        if isinstance(message, types.ToolListChangedNotification):
            self._on_change()

    def _gone(self, why: str) -> None:
        self._lost = self._lost or why
        self._wake.set()

    async def _last_words(self) -> None:
        """Lets calls hear how they ended: a session that the server has forgotten may still answer some."""
        if self._calls and not self._told_to_end:
            await asyncio.wait(set(self._calls), timeout=_LAST_WORDS)

    async def _end_calls(self) -> None:
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=1)

    def _told(self, error: Exception) -> ToolFailure:
        """Why the session did not open or broke, in words for the model."""
        if isinstance(error, ExceptionGroup):
            return self._told(error.exceptions[0])
        if isinstance(error, MCPError):
            error = self._faults.take(error.message) or error
        if isinstance(error, ToolFailure):
            return ToolFailure(error.message, reached=False)
        if isinstance(error, EgressRefused):
            return self._not_available(error.message)
        if isinstance(error, MCPError):
            said = clip(clean(error.message), 300)
            return self._not_available(self._lost or f"it refused the session ({error.code}: {said})")
        if isinstance(error, OSError):
            return self._not_available(f"its program can't be started ({error.strerror})")
        log.warning("mcp_session_broke", server=self._name, error=type(error).__name__)
        return self._not_available(f"it does not keep to the protocol ({type(error).__name__})")

    # calls

    async def _made(self, work: Any, seconds: float, *, what: str) -> JSONValue:
        if not self.usable:
            work.close()
            raise ToolFailure(f"The session with the MCP server {self._name!r} is over.", retryable=True, reached=False)
        started = self._loop.time()
        task: asyncio.Task[JSONValue] = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._done)
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            if self._heard < started and len(self._calls) == 1:
                # Nothing at all was heard of it: the next call gets a new session, and a new process.
                self._gone("it does not answer")
            raise ToolFailure(
                f"The MCP server {self._name!r} did not finish {what} within {seconds:g} s.", retryable=True
            )
        if task.cancelled():
            raise self._broken()
        return task.result()

    def _done(self, task: asyncio.Task[JSONValue]) -> None:
        self._calls.discard(task)
        self.used = self._loop.time()
        if not task.cancelled() and (error := task.exception()) is None:
            self._heard = self.used
        elif not task.cancelled() and not isinstance(error, ToolFailure):
            log.warning("mcp_call_broke", server=self._name, error=type(error).__name__)
        if not self._calls:
            self._wake.set()

    async def _call(self, tool: str, arguments: dict[str, Any], meta: Any) -> JSONValue:
        listed_again = False
        state: str | None = None
        try:
            for attempt in range(_ROUNDS):
                try:
                    answer = await self._ask(tool, arguments, meta, state)
                except MCPError as error:
                    if error.code != types.HEADER_MISMATCH or listed_again:
                        raise
                    # The tool's schema has changed since it was listed; it says which arguments go into headers.
                    listed_again = True
                    await self._list()
                    continue
                if isinstance(answer, types.CallToolResult):
                    return result(self._name, answer)
                if not isinstance(answer, types.InputRequiredResult) or answer.input_requests:
                    raise ToolFailure(
                        f"The MCP server {self._name!r} wants something of a person or a model before it answers; "
                        "that is not supported. Go on without this tool."
                    )
                state = answer.request_state
                await asyncio.sleep(min(1.0, 0.05 * 2**attempt))
        except MCPError as error:
            raise self._failure(error) from None
        except (ValidationError, RuntimeError, ValueError):
            raise ToolFailure(
                f"The MCP server {self._name!r} sent something that is no result of a tool.", retryable=True
            ) from None
        raise ToolFailure(f"The MCP server {self._name!r} put the call off {_ROUNDS} times.")

    async def _ask(self, tool: str, arguments: dict[str, Any], meta: Any, state: str | None) -> types.Result:
        # Not `call_tool`: it would check results against the server's own schema, whose patterns may take for ever.
        assert self._client is not None
        params = types.CallToolRequestParams(name=tool, arguments=arguments, request_state=state, _meta=meta)
        return await self._client.send_request(types.CallToolRequest(params=params), _ANSWERS)

    async def _list(self) -> Any:
        assert self._client is not None
        found: list[types.Tool] = []
        cursor: str | None = None
        try:
            for _ in range(_PAGES):
                page = await self._client.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
                found += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    break
        except MCPError as error:
            if error.code == types.METHOD_NOT_FOUND:
                return []
            raise self._failure(error) from None
        except (ValidationError, RuntimeError, ValueError):
            raise ToolFailure(f"The MCP server {self._name!r} sent a list of tools that is not valid.") from None
        if cursor is not None or len(found) > _TOOLS:
            log.warning("mcp_tools_cut", server=self._name, kept=min(len(found), _TOOLS))
        return [listed(tool) for tool in found[:_TOOLS]]

    def _failure(self, error: MCPError) -> ToolFailure:
        if (failure := self._faults.take(error.message)) is not None:
            return failure
        if error.code == types.CONNECTION_CLOSED:
            return self._broken()
        if error.code == types.PARSE_ERROR:
            return ToolFailure(f"The MCP server {self._name!r} sent something that is not valid JSON.", retryable=True)
        said = clip(clean(error.message), _ERROR_BYTES)
        return ToolFailure(f"The MCP server {self._name!r} refused the call ({error.code}): {said}")

    def _broken(self) -> ToolFailure:
        why = f": {self._lost}" if self._lost else ""
        return ToolFailure(f"The MCP server {self._name!r} broke off during the call{why}.", retryable=True)
