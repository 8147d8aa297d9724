"""The way to one server, with one credential, for one org: a session when it is needed, and its list of tools.

A session is opened for the first that needs it and shared. One that ends is opened again by the next call. A server
that can't be reached, or that dies again and again, is left alone for a while, which doubles each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from kernel.effects import EffectClass
from orchestrator.mcp.listing import Listing
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import JSONValue

if TYPE_CHECKING:
    from orchestrator.mcp.session import Session

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SOON: Final = 0.5
_REFUSED: Final = 4.0
_LONGEST_PAUSE: Final = 60.0
_WAITED: Final = 2.0
_STEADY: Final = 60.0


class Connection:
    """Safe for any number of calls at once.

    Args:
        name: of the server, for messages.
        org_id: whose it is.
        new_session: begins to open a session (handshake known, on change, on end); ToolFailure where there is no room.
        open_seconds: for opening a session, and for listing its tools.
        list_seconds: for which a list of tools is believed.
    """

    def __init__(
        self,
        name: str,
        org_id: str,
        new_session: Callable[[bool, Callable[[], None], Callable[[str | None], None]], Awaitable[Session]],
        *,
        open_seconds: float,
        list_seconds: float,
    ) -> None:
        self._name = name
        self.org_id = org_id
        self._new_session = new_session
        self._open_seconds = open_seconds
        self._list_seconds = list_seconds
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None
        self._listing: Listing | None = None
        self._reading: asyncio.Task[Listing] | None = None
        self._changed = False
        self._handshake = False
        self._failures = 0
        self._since = 0.0
        self._not_before = 0.0
        self._why: ToolFailure | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()

    @property
    def idle(self) -> bool:
        """Whether it has no session, nor is about to have one."""
        return self._opening is None and self._session is None

    @property
    def spare(self) -> float:
        """Seconds that a call may take beyond its own, for the session to be opened."""
        return 2 * self._open_seconds + _WAITED + 1.0

    async def listing(self) -> Listing:
        """The server's tools, read again where the list is old. An old one is better than none.

        Raises:
            ToolFailure: it can't be reached, or does not say.
        """
        self.used = self._loop.time()
        known = self._listing
        if known is not None and not self._changed and self.used - known.at < self._list_seconds:
            return known
        try:
            return await self._shared_reading()
        except ToolFailure as failure:
            if known is None:
                raise
            log.warning("mcp_list_is_old", server=self._name, org_id=self.org_id, reason=failure.message)
            return known

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, effect: EffectClass, key: str, seconds: float
    ) -> JSONValue:
        """Calls a tool, in a new session if the old one is over.

        Raises:
            ToolFailure: no result.
        """
        self.used = self._loop.time()
        session = await self._open()
        return await session.call(tool, arguments, effect=effect, key=key, seconds=seconds)

    async def aclose(self) -> None:
        """Ends the session. The connection can't be used afterwards."""
        self._closed = True
        for task in (self._opening, self._reading):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> Session:
        if self._closed:
            raise ToolFailure("This worker is stopping.", reached=False)
        if self._session is not None and self._session.usable:
            return self._session
        if self._opening is None:
            self._opening = asyncio.create_task(self._opened())
            self._opening.add_done_callback(self._no_longer_opening)
        return await _shared(self._opening)

    def _no_longer_opening(self, task: asyncio.Task[Session]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # all who waited for it may be gone

    async def _opened(self) -> Session:
        pause = self._not_before - self._loop.time()
        if pause > _WAITED:
            why = self._why.message if self._why else f"The MCP server {self._name!r} has ended."
            raise ToolFailure(f"{why} It is tried again in {pause:.0f} s.", reached=False)
        await asyncio.sleep(max(0.0, pause))
        session = await self._new_session(self._handshake, self._on_change, self._ended)
        self._since = self._loop.time()
        try:
            await session.opened(self._open_seconds)
            # Also for the headers that some servers want of each call: they stand in the list.
            await self._read(session)
            self._session = session
        except ToolFailure as failure:
            self._why = failure
            self._pause(_REFUSED)
            session.end()
            raise
        self._handshake = session.handshake
        log.info("mcp_session_opened", server=self._name, org_id=self.org_id, protocol=session.protocol)
        return session

    async def _shared_reading(self) -> Listing:
        session = self._session
        if session is None or not session.usable:
            await self._open()
            assert self._listing is not None
            return self._listing
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(session))
            self._reading.add_done_callback(self._no_longer_reading)
        return await _shared(self._reading)

    def _no_longer_reading(self, task: asyncio.Task[Listing]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()

    async def _read(self, session: Session) -> Listing:
        self._changed = False
        try:
            tools = await session.tools(self._open_seconds)
        except ToolFailure:
            self._changed = True
            raise
        if self._listing is not None and list(self._listing.tools) == tools:
            self._listing.at = self._loop.time()
        else:
            self._listing = Listing(tools, self._loop.time())
        return self._listing

    def _on_change(self) -> None:
        self._changed = True

    def _ended(self, why: str | None) -> None:
        """`why` is None where the end was ours."""
        self._session = None
        if why is None or self._opening is not None:
            return
        log.warning("mcp_session_lost", server=self._name, org_id=self.org_id, reason=why)
        if self._loop.time() - self._since > _STEADY:
            self._failures = 0
        self._why = None
        self._pause(_SOON)

    def _pause(self, first: float) -> None:
        self._failures = min(self._failures + 1, 10)
        self._not_before = self._loop.time() + min(_LONGEST_PAUSE, first * 2 ** (self._failures - 1))


async def _shared(task: asyncio.Task[T]) -> T:
    """The result of a task that others wait for too: whoever is cancelled leaves it running."""
    await asyncio.wait({task})
    if task.cancelled():
        raise ToolFailure("This worker is stopping.", reached=False)
    return task.result()
