"""The secrets of one run: its own, and those of its org.

Nothing is read before a tool asks, or before a call of a run whose tools name secrets: a run without such tools asks
Postgres for nothing. Whatever a run's tools name is struck out of whatever its tools return, used or not: a server may
give away in one answer what it was told in another.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from kernel.postgres import STORE_ERRORS, Pool
from kernel.sealing import CannotOpen, Sealed, Sealer
from kernel.secrets import find_secrets, open_of_run, open_secret
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.redaction import Redaction

log = structlog.get_logger(__name__)

_FRESH_SECONDS: Final = 30.0
"""How long a secret is used without looking whether it was replaced or deleted."""

_UNKNOWN: Final = (-math.inf, None)


class RunVault:
    """The vault of one run on one worker, shared by its agents. Satisfies `Vault`.

    Args:
        clock: seconds; given by tests that turn it.
    """

    def __init__(
        self, db: Pool, sealer: Sealer, org_id: str, run_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = db
        self._clock = clock
        self._sealer = sealer
        self._org_id = org_id
        self._run_id = run_id
        self._expected: set[str] = set()
        self._own: dict[str, str] | CannotOpen | None = None
        self._of_org: dict[str, tuple[float, str | CannotOpen | None]] = {}
        self._struck: frozenset[str] = frozenset()
        self._redaction = Redaction()
        self._loading = asyncio.Lock()

    def expect(self, *names: str) -> None:
        """See `Vault.expect`."""
        self._expected.update(names)

    async def ready(self) -> None:
        """See `Vault.ready`."""
        if self._expected:
            await self._load(self._expected)

    async def reveal(self, name: str) -> str:
        """See `Vault.reveal`."""
        await self._load({name, *self._expected})
        if isinstance(self._own, CannotOpen):
            raise ToolFailure(f"The run's own secrets can't be opened. {self._own.message}", reached=False)
        assert self._own is not None
        found = self._own.get(name) or self._of_org.get(name, _UNKNOWN)[1]
        if found is None:
            raise ToolFailure(
                f"There is no secret named {name!r}: whoever configured this tool must set it.", reached=False
            )
        if isinstance(found, CannotOpen):
            raise ToolFailure(f"The secret {name!r} can't be opened. {found.message}", reached=False)
        return found

    def redact(self, text: str, *, cut: bool = False) -> str:
        """See `Vault.redact`."""
        return self._redaction.strike(text, cut=cut)

    def _stale(self, names: Iterable[str]) -> list[str]:
        now = self._clock()
        own = self._own if isinstance(self._own, dict) else {}
        return [name for name in names if name not in own and self._of_org.get(name, _UNKNOWN)[0] < now]

    async def _load(self, names: Iterable[str]) -> None:
        if self._own is not None and not self._stale(names):
            return
        async with self._loading:
            stale = self._stale(names)  # another call may have loaded them meanwhile
            if self._own is not None and not stale:
                return
            first = self._own is None
            try:
                found = await find_secrets(self._db, self._org_id, self._run_id if first else None, stale)
            except STORE_ERRORS:
                raise ToolFailure("The secrets can't be read at the moment.", retryable=True, reached=False) from None
            await self._sealer.ready()
            own = self._opened_own(found.of_run) if first else self._own
            until = self._clock() + _FRESH_SECONDS
            of_org = {name: (until, self._opened(name, found.of_org.get(name))) for name in stale}
            # Before any of it can be used: what is in hand must be struck already.
            await self._remember(own, of_org.values())
            self._own = own
            self._of_org |= of_org

    def _opened_own(self, sealed: Sealed | None) -> dict[str, str] | CannotOpen:
        if sealed is None:
            return {}
        try:
            return open_of_run(self._sealer, sealed, self._org_id, self._run_id)
        except CannotOpen as error:
            log.error("run_secrets_not_opened", run_id=self._run_id, error=error.message)
            return error

    def _opened(self, name: str, sealed: Sealed | None) -> str | CannotOpen | None:
        if sealed is None:
            return None
        try:
            return open_secret(self._sealer, sealed, self._org_id, name)
        except CannotOpen as error:
            log.error("secret_not_opened", org_id=self._org_id, run_id=self._run_id, name=name, error=error.message)
            return error

    async def _remember(
        self, own: dict[str, str] | CannotOpen | None, of_org: Iterable[tuple[float, str | CannotOpen | None]]
    ) -> None:
        """What was ever in hand is struck, also when it has been replaced since."""
        known = self._struck.union(own.values() if isinstance(own, dict) else ())
        known = known.union(value for _, value in of_org if isinstance(value, str))
        if known != self._struck:
            # On a thread: for long secrets it takes longer than other runs may wait.
            self._redaction = await asyncio.to_thread(Redaction, known)
            self._struck = known
