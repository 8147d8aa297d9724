"""Who may see and change which memories, and the memory of this process, opened when the first caller needs it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from kernel.agents import get_agent
from kernel.errors import Forbidden, InvalidInput, NotFound
from kernel.postgres import Pool
from kernel.sessions import get_session
from kernel.settings import Settings
from kernel.tenants import Principal
from memory.records import MemoryItem, Scope, ScopeKind

if TYPE_CHECKING:
    from memory.port import Memory


@dataclass(frozen=True, slots=True)
class OfWhom:
    """Whom a caller names."""

    user_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """What a caller sees: `everyone` is all of the org."""

    scope: Scope
    everyone: bool


@dataclass(frozen=True, slots=True)
class Writer:
    """Where a caller's memory is kept."""

    scope: Scope
    kind: ScopeKind


class MemoryAccess:
    """One per process. `aclose()` closes what was opened."""

    def __init__(self, settings: Settings, db: Pool, redis: Redis) -> None:
        self._settings = settings
        self._db = db
        self._redis = redis
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._memory: Memory | None = None

    async def memory(self) -> Memory:
        """The memory. Its code and its libraries are loaded by the first call, off the event loop."""
        if self._memory is None:
            async with self._opening:
                if self._memory is None:
                    host_module = await asyncio.to_thread(import_module, "memory.host")
                    if self._settings.memory == "postgres":
                        await asyncio.to_thread(import_module, "memory.opening")
                    host = host_module.MemoryHost(self._settings, self._db, self._redis)
                    self._memory = await self._stack.enter_async_context(host_module.open_memory(host))
        assert self._memory is not None
        return self._memory

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def reader(self, principal: Principal, of: OfWhom) -> Reader:
        """What the caller sees who asks for the memories of somebody.

        Raises:
            Forbidden: of another user.
            NotFound: there is no such agent or session for the caller.
        """
        user_id = _user(principal, of.user_id)
        await self._exist(principal, of)
        scope = Scope(principal.org_id, user_id, of.agent_id, of.session_id)
        return Reader(scope, everyone=principal.user_id is None and of == OfWhom())

    async def writer(self, principal: Principal, of: OfWhom, kind: ScopeKind | None) -> Writer:
        """Where what the caller writes is kept.

        Raises:
            Forbidden: it is not theirs to write there.
            InvalidInput: the scope's owner is missing, or another one is named.
            NotFound: there is no such agent or session for the caller.
        """
        user_id = _user(principal, of.user_id)
        kind = kind or ("user" if user_id is not None else "org")
        if kind in ("org", "agent") and not _may_write_for_all(principal):
            raise Forbidden(
                f"Only an admin writes memories of the {kind}: every user would be told them.",
                suggestions=("leave `scope` out: the memory is then the user's",),
            )
        owners: dict[ScopeKind, str | None] = {"user": user_id, "agent": of.agent_id, "session": of.session_id}
        if kind != "org" and owners[kind] is None:
            raise InvalidInput(f"a memory of scope {kind} needs {kind}_id", field=f"{kind}_id")
        await self._exist(principal, of)
        return Writer(Scope(principal.org_id, user_id, of.agent_id, of.session_id), kind)

    async def visible(self, principal: Principal, memory_id: str) -> tuple[MemoryItem, Reader]:
        """A memory that the caller may see.

        Raises:
            NotFound: there is none.
        """
        scope = Scope(principal.org_id, principal.user_id)
        item = await (await self.memory()).get(scope, memory_id, everyone=True)
        if _may_write_for_all(principal) or item.scope == "org":
            return item, Reader(scope, everyone=_may_write_for_all(principal))
        try:
            of = OfWhom(**{f"{item.scope}_id": item.owner})
            return item, await self.reader(principal, of)
        except (Forbidden, NotFound):
            raise NotFound(f"There is no memory {memory_id}.", field="memory_id") from None

    async def changeable(self, principal: Principal, memory_id: str) -> tuple[MemoryItem, Reader]:
        """A memory that the caller may change.

        Raises:
            NotFound: there is none that they may see.
            Forbidden: it is not theirs.
        """
        item, reader = await self.visible(principal, memory_id)
        if item.scope in ("org", "agent") and not _may_write_for_all(principal):
            raise Forbidden(f"The memory belongs to the {item.scope}: only an admin changes it.")
        return item, reader

    async def _exist(self, principal: Principal, of: OfWhom) -> None:
        if of.agent_id is not None:
            await get_agent(self._db, principal.org_id, of.agent_id)
        if of.session_id is not None:
            session = await get_session(self._db, principal.org_id, of.session_id)
            if principal.user_id is not None and session.user_id != principal.user_id:
                raise NotFound(f"There is no session {of.session_id}.", field="session_id")


def _user(principal: Principal, asked: str | None) -> str | None:
    if principal.user_id is None or ("admin" in principal.scopes and asked is not None):
        return asked
    if asked is not None and asked != principal.user_id:
        raise Forbidden("A user's memories are theirs alone.", suggestions=("leave `user_id` out",))
    return principal.user_id


def _may_write_for_all(principal: Principal) -> bool:
    return principal.user_id is None or "admin" in principal.scopes
