"""Shares: how much of the workers' slots each org gets, and what it is charged for what it uses.

An org has a weight and a cap, and a lane with a place in virtual time. Claims start a run of the org with the lowest
place; a start moves the place on by 1/weight, and what the run then uses of its slot and of models by more. Where
orgs compete, each gets its weight's share of the units below; what nobody else wants is free.

Charges are gathered by the workers and written a little later, outside the journal, and without waiting for the disk:
a crash loses the last of them, which does no harm. The claim itself is `claim_runs` in the migrations, and
docs/decisions/0010-fair-claims.md says why it is so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from kernel.errors import InvalidInput, NotFound
from kernel.postgres import Connection, Pool
from kernel.sql import statements

SQL = statements(__package__, "shares.sql")

# One unit is the price of a start. A second in a slot costs another, and so do as many tokens as a model reads or
# writes in that time. Were starts much cheaper, an org that is behind would get every slot before its first charge.
UNITS_PER_SECOND: Final = 1.0
UNITS_PER_INPUT_TOKEN: Final = 1 / 4000
UNITS_PER_OUTPUT_TOKEN: Final = 1 / 100

_LEAST_WEIGHT: Final = 0.01
_GREATEST_WEIGHT: Final = 1000.0
_GREATEST_CAP: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Used:
    """What a run has used: seconds in a slot, and tokens."""

    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def __sub__(self, earlier: Used) -> Used:
        return Used(
            self.seconds - earlier.seconds,
            self.input_tokens - earlier.input_tokens,
            self.output_tokens - earlier.output_tokens,
        )

    @property
    def units(self) -> float:
        """Its price, the start apart."""
        return (
            self.seconds * UNITS_PER_SECOND
            + self.input_tokens * UNITS_PER_INPUT_TOKEN
            + self.output_tokens * UNITS_PER_OUTPUT_TOKEN
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """What runs of an org have used, in units; `tag` is the greatest start tag among them."""

    org_id: str
    tag: float
    units: float


@dataclass(frozen=True, slots=True)
class Share:
    """An org's part in the slots. `waiting` are runs that could start, `charged` units since its first run."""

    name: str
    weight: float
    max_running: int | None
    running: int
    waiting: int
    charged: float


async def charge(db: Pool | Connection, charges: Sequence[Charge]) -> None:
    """Moves the lanes of these orgs on. Each org may be named once; those that have been deleted are left out."""
    await db.execute(
        SQL.charge,
        [one.org_id for one in charges],
        [one.tag for one in charges],
        [one.units for one in charges],
    )


async def list_shares(db: Pool | Connection) -> list[Share]:
    """Those of all orgs, by name."""
    return [_share(row) for row in await db.fetch(SQL.list, None)]


async def set_share(
    db: Pool | Connection,
    name: str,
    *,
    weight: float | None = None,
    max_running: int | None = None,
    no_cap: bool = False,
) -> Share:
    """Changes what is given of the org `name`; it holds from the next claim on. What runs goes on in any case.

    Args:
        weight: 0.01 to 1000; orgs that compete get slots in proportion.
        max_running: how many of its runs may run at once; 0 holds them all.
        no_cap: takes the cap away.

    Raises:
        NotFound: no such org.
        InvalidInput: out of range.
    """
    if weight is not None and not (math.isfinite(weight) and _LEAST_WEIGHT <= weight <= _GREATEST_WEIGHT):
        raise InvalidInput(f"weight must be {_LEAST_WEIGHT:g} to {_GREATEST_WEIGHT:g}.", field="weight")
    if max_running is not None and not 0 <= max_running <= _GREATEST_CAP:
        raise InvalidInput(f"max_running must be 0 to {_GREATEST_CAP}.", field="max_running")
    if max_running is not None and no_cap:
        raise InvalidInput("A cap can't be set and taken away at once.", field="max_running")
    if await db.fetchval(SQL.set, name, weight, max_running, no_cap) is None:
        raise NotFound(f"There is no org named {name}.", suggestions=("longhaul orgs list shows all",))
    row = await db.fetchrow(SQL.list, name)
    assert row is not None
    return _share(row)


def _share(row: asyncpg.Record) -> Share:
    return Share(**row)
