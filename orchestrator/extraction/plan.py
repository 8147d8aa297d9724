"""A plan: what is to be done with memories, decided once and then carried out as often as it takes.

It is kept with the job before its first step, so that a worker that takes the job over does what was decided, and asks
no model again. Each step comes to the same however often it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernel.errors import NotFound
from memory.port import Memory
from memory.records import Filter, MemoryItem, NewMemory, Scope
from orchestrator.extraction.candidates import packed, unpacked
from orchestrator.extraction.material import Material

_PAGE = 50
_MOST_PAGES = 40


@dataclass(frozen=True, slots=True)
class Step:
    """A memory that is to be kept, and the one whose place it takes, if any."""

    memory_id: str | None
    new: NewMemory


def pack(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as JSON."""
    return [{"memory_id": step.memory_id, "new": packed(step.new)} for step in steps]


def unpack(steps: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The reverse of `pack`."""
    return [Step(step["memory_id"], unpacked(step["new"])) for step in steps]


async def carry_out(memory: Memory, scope: Scope, steps: Sequence[Step]) -> None:
    """Does all steps; those that were done already come to nothing.

    Raises:
        MemoryUnavailable, EmbedderUnavailable: not all of them are done; call it again.
    """
    await memory.remember_all(scope, [step.new for step in steps if step.memory_id is None])
    for step in steps:
        if step.memory_id is not None:
            await _supersede(memory, scope, step.memory_id, step.new)


async def _supersede(memory: Memory, scope: Scope, memory_id: str, new: NewMemory) -> None:
    try:
        item = await memory.supersede(scope, memory_id, new)
        while item.text != new.text and item.superseded_by is not None:
            item = await memory.get(scope, item.superseded_by)
    except NotFound:  # it was forgotten meanwhile
        item = None
    if item is None or item.text != new.text:
        # Something else has ended it meanwhile.
        await memory.remember_all(scope, [new])


async def last_summary(memory: Memory, material: Material) -> MemoryItem | None:
    """The summary of the session that counts now. Summaries of the same user that are older than the session need not
    be looked at."""
    scope = material.scope
    alone = scope.user_id is not None and not material.shared
    where = Filter(kinds=("summary",), scopes=("user", "session") if alone else ("session",))
    after: str | None = None
    for _ in range(_MOST_PAGES):
        page = await memory.list(scope, where=where, after=after, limit=_PAGE)
        for item in page:
            if item.session_id == scope.session_id and turn_of(item) is not None:
                return item
        if len(page) < _PAGE or page[-1].created_at < material.session_began:
            return None
        after = page[-1].id
    return None


def turn_of(item: MemoryItem) -> int | None:
    """The turn up to which a summary reaches; None of a memory that was not extracted."""
    extracted = (item.metadata or {}).get("extracted")
    turn = extracted.get("turn") if isinstance(extracted, Mapping) else None
    return turn if isinstance(turn, int) else None
