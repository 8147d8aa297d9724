"""All connections of a worker to MCP servers, and the maker of their tools.

One connection per org, server and credential: nothing of one org ever travels in another's session. How many sessions
are open at once is bounded, per org and in all. An org gets no more than are left free for others, so a few of them
never fill a worker; to make room, the session that has been idle the longest is closed, of the org that has most.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from yarl import URL

from kernel.mcp_servers import McpEndpoint, McpProgram
from kernel.tool_definitions import McpServer
from orchestrator.egress import Resolve
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import SystemResolver
from orchestrator.kit import KitScope
from orchestrator.mcp.connection import Connection
from orchestrator.mcp.tools import Unavailable, tools_of
from orchestrator.tools.errors import BadKit, ToolFailure
from orchestrator.tools.tool import Tool

if TYPE_CHECKING:
    import ssl

    from orchestrator.mcp.session import Session, Streams

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 512


class McpConnections:
    """One per worker. Opens and imports nothing before a definition asks for it.

    Args:
        servers: those that the operator configured, by name.
        allow: `host:port` pairs that definitions may name although they are private addresses.
        resolve: names to addresses; the operating system's resolver if None.
        most, most_per_org: sessions open at once.
        idle_seconds: after which an unused session is closed.
        open_seconds: for opening a session, and for listing its tools.
        list_seconds: for which a list of tools is believed.
    """

    def __init__(
        self,
        servers: Mapping[str, McpProgram | McpEndpoint],
        *,
        allow: Collection[str] = (),
        resolve: Resolve | None = None,
        most: int = 64,
        most_per_org: int = 16,
        idle_seconds: float = 300.0,
        open_seconds: float = 10.0,
        list_seconds: float = 300.0,
    ) -> None:
        self._servers = servers
        self._allow = tuple(allow)
        self._system = SystemResolver() if resolve is None else None
        self._resolve: Resolve = resolve or self._system  # type: ignore[assignment]  # one of them is there
        self._most = most
        self._most_per_org = most_per_org
        self._idle_seconds = idle_seconds
        self._open_seconds = open_seconds
        self._list_seconds = list_seconds
        self._tls: ssl.SSLContext | None = None
        self._connections: dict[tuple[str, str, str], Connection] = {}
        self._live: dict[Session, str] = {}
        self._loading: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """Sessions that are open or being opened."""
        return len(self._live)

    async def make(self, definition: McpServer, scope: KitScope) -> Sequence[Tool[Any]]:
        """The tools of a server. One that can't be reached gives a single tool that says so, and the run goes on.

        Raises:
            BadKit: the definition names a server that is not configured, or a credential for one that takes none.
        """
        configured = self._configured(definition)
        try:
            headers: dict[str, str] = {}
            if (auth := definition.auth_config) is not None:
                scope.vault.expect(auth.source)
                headers[auth.target] = auth.prefix + await scope.vault.reveal(auth.source)
            connection = self._connection(definition, configured, scope.org_id, headers)
            listing = await connection.listing()
        except ToolFailure as failure:
            why = scope.vault.redact(failure.message)
            log.warning(
                "mcp_server_unavailable",
                server=definition.name,
                org_id=scope.org_id,
                run_id=scope.run_id,
                reason=why,
            )
            return [Unavailable(definition, why)]
        form = definition.model_dump_json()
        if form not in listing.made:
            if len(listing.made) >= _REMEMBERED:
                listing.made.clear()
            listing.made[form] = tools_of(definition, listing.tools, connection, scope.vault.redact)
        return listing.made[form]

    async def aclose(self) -> None:
        """Ends all sessions and the programs behind them."""
        await asyncio.gather(*(connection.aclose() for connection in self._connections.values()))
        await asyncio.gather(*(session.close() for session in list(self._live)))
        self._connections.clear()
        if self._system is not None:
            self._system.close()

    def _configured(self, definition: McpServer) -> McpProgram | McpEndpoint | None:
        if definition.server is None:
            return None
        configured = self._servers.get(definition.server)
        if configured is None:
            raise BadKit(
                f"This deployment has no MCP server named {definition.server!r}.",
                suggestions=(f"use one of: {', '.join(self._servers) or 'none'}, or give its url",),
            )
        if definition.auth_config is not None and isinstance(configured, McpProgram):
            raise BadKit(
                f"The MCP server {definition.server!r} is a program, which takes no request header.",
                suggestions=("leave auth_config out", "have the operator configure the program's environment"),
            )
        return configured

    def _connection(
        self,
        definition: McpServer,
        configured: McpProgram | McpEndpoint | None,
        org_id: str,
        headers: dict[str, str],
    ) -> Connection:
        address = f"url {definition.url}" if configured is None else f"server {definition.server}"
        credential = hashlib.sha256(repr(sorted(headers.items())).encode()).hexdigest() if headers else ""
        key = (org_id, address, credential)
        connection = self._connections.pop(key, None)
        if connection is None:
            self._forget_some()
            connection = Connection(
                definition.name,
                org_id,
                partial(self._new_session, definition.name, org_id, self._streams(definition, configured, headers)),
                open_seconds=self._open_seconds,
                list_seconds=self._list_seconds,
            )
        self._connections[key] = connection  # the youngest is last
        return connection

    def _forget_some(self) -> None:
        """Drops what has not been used for longest and has no session."""
        surplus = len(self._connections) - _REMEMBERED + 1
        for key, connection in list(self._connections.items()) if surplus > 0 else ():
            if surplus > 0 and connection.idle:
                del self._connections[key]
                surplus -= 1

    async def _new_session(
        self,
        name: str,
        org_id: str,
        streams: Callable[[], Streams],
        handshake: bool,
        on_change: Callable[[], None],
        on_end: Callable[[str | None], None],
    ) -> Session:
        await self._load()
        from orchestrator.mcp.session import Session

        await self._make_room(org_id)

        def ended(why: str | None) -> None:
            self._live.pop(session, None)
            on_end(why)

        session = Session(
            name, streams(), handshake=handshake, idle=self._idle_seconds, on_change=on_change, on_end=ended
        )
        self._live[session] = org_id
        return session

    async def _make_room(self, org_id: str) -> None:
        """Closes idle sessions where there are too many.

        Raises:
            ToolFailure: all are in use.
        """
        while True:
            held = Counter(self._live.values())
            free = self._most - len(self._live)
            at_its_share = held[org_id] >= min(self._most_per_org, max(1, free))
            if free > 0 and not at_its_share:
                return
            idle = [
                session
                for session, org in self._live.items()
                if session.usable and not session.busy and (org == org_id or not at_its_share)
            ]
            if not idle:
                raise ToolFailure("This worker has too many MCP servers in use; try again later.", reached=False)
            await min(idle, key=lambda session: (-held[self._live[session]], session.used)).close()

    def _streams(
        self, definition: McpServer, configured: McpProgram | McpEndpoint | None, headers: dict[str, str]
    ) -> Callable[[], Streams]:
        """What opens the transport, once the mcp package is there."""
        if isinstance(configured, McpProgram):
            env = {name: value.get_secret_value() for name, value in configured.env.items()}

            def program() -> Streams:
                from orchestrator.mcp.stdio import stdio_streams

                return lambda faults, on_lost: stdio_streams(
                    definition.name, configured.command, env, faults=faults, on_lost=on_lost
                )

            return program
        allow = self._allow
        url = definition.url or ""
        if configured is not None:
            url = configured.url
            allow = (*allow, _pair(url))  # the operator's word is leave enough
            given = {name.lower() for name in headers}
            fixed = {name: value.get_secret_value() for name, value in configured.headers.items()}
            headers = {name: value for name, value in fixed.items() if name.lower() not in given} | headers

        def endpoint() -> Streams:
            from orchestrator.mcp.http import http_streams

            tls, gate = self._tls, Gate(allow)
            assert tls is not None
            return lambda faults, on_lost: http_streams(
                definition.name,
                url,
                headers,
                gate=gate,
                resolve=self._resolve,
                tls=tls,
                faults=faults,
                on_lost=on_lost,
            )

        return endpoint

    async def _load(self) -> None:
        """Imports the mcp package, once, where it holds nothing up."""
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.create_task(self._load_on_a_thread())
        try:
            await asyncio.shield(self._loading)
        except ImportError:
            raise ToolFailure(
                "This worker has no MCP client: the extra 'mcp' is not installed.", reached=False
            ) from None

    async def _load_on_a_thread(self) -> None:
        self._tls = await asyncio.to_thread(_import)


def _import() -> ssl.SSLContext:
    import httpcore2

    import orchestrator.mcp.http
    import orchestrator.mcp.session
    import orchestrator.mcp.stdio  # noqa: F401

    return httpcore2.default_ssl_context()


def _pair(url: str) -> str:
    parts = URL(url)
    host = f"[{parts.host}]" if ":" in (parts.host or "") else parts.host
    return f"{host}:{parts.port}"
