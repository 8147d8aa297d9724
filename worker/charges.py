"""Charges: what the runs of this worker use, gathered by org and written to the orgs' lanes every so often.

A run is charged while it goes on, twice a second, and once more when it leaves its slot: jobs of hours count
from the start, and a run that changes owners is charged by each for its own part. The journal knows nothing of it, and
what can't be written now is written later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from kernel.leases import ClaimedRun
from kernel.postgres import STORE_ERRORS, Pool
from kernel.shares import Charge, Used, charge

log = structlog.get_logger(__name__)

_FLUSH_EVERY: Final = 0.2
_INSTALMENT_EVERY: Final = 0.5
_PATIENCE: Final = 3.0


@dataclass(slots=True)
class _Meter:
    run: ClaimedRun
    read: Callable[[], Used]
    charged: Used = field(default_factory=Used)

    def since(self) -> Used:
        """What was used since the last call."""
        used = self.read()
        new, self.charged = used - self.charged, used
        return new


class Charges:
    """`run()` is its task; it ends when cancelled."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self._meters: dict[tuple[str, int], _Meter] = {}
        self._due: dict[str, Charge] = {}
        self._last_instalment = time.monotonic()
        self._something = asyncio.Event()

    def begin(self, run: ClaimedRun, read: Callable[[], Used]) -> None:
        """A run has got a slot; `read` tells what it has used since."""
        self._meters[run.id, run.epoch] = _Meter(run, read)
        self._something.set()

    def end(self, run: ClaimedRun) -> None:
        """It has left it."""
        if (meter := self._meters.pop((run.id, run.epoch), None)) is not None:
            self._add(meter)
            self._something.set()

    async def run(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(_FLUSH_EVERY)
            if time.monotonic() - self._last_instalment >= _INSTALMENT_EVERY:
                self._take_instalments()
            await self._write()
            if not self._meters and not self._due:
                self._something.clear()

    async def flush(self) -> None:
        """Writes what runs have used up to now, if Postgres takes it: for the worker's last act."""
        self._take_instalments()
        await self._write()

    def _take_instalments(self) -> None:
        self._last_instalment = time.monotonic()
        for meter in self._meters.values():
            self._add(meter)

    def _add(self, meter: _Meter) -> None:
        org_id, tag, units = meter.run.org_id, meter.run.vtag, meter.since().units
        due = self._due.get(org_id)
        self._due[org_id] = Charge(org_id, max(tag, due.tag), due.units + units) if due else Charge(org_id, tag, units)

    async def _write(self) -> None:
        if not self._due:
            return
        due = list(self._due.values())
        try:
            async with asyncio.timeout(_PATIENCE):
                await charge(self._db, due)
        except STORE_ERRORS as error:
            log.warning("charges_not_written", error=repr(error), orgs=len(due), effect="tried again")
            return
        for written in due:
            left = self._due[written.org_id]
            if left is written:
                del self._due[written.org_id]
            else:  # more was added meanwhile
                self._due[written.org_id] = Charge(left.org_id, left.tag, left.units - written.units)
