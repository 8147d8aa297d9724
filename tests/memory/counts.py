"""Counting again: what the counters of memory say is what is there."""

from __future__ import annotations

from kernel.postgres import Pool


async def assert_counts(database: Pool, org_id: str) -> None:
    """Totals, frequencies of terms and shelves of an org equal a recount; memories have words unless they are over."""
    words = await database.fetch(
        """SELECT w.memory, w.shelf, w.keys, w.length FROM memory_words w JOIN memory_shelves s ON s.id = w.shelf
           WHERE s.org_id = $1""",
        org_id,
    )
    terms: dict[int, int] = {}
    shelves: dict[int, int] = {}
    for row in words:
        shelves[row["shelf"]] = shelves.get(row["shelf"], 0) + 1
        for key in row["keys"]:
            assert key >> 29 == row["shelf"]
            terms[key & 0x1FFFFFFF] = terms.get(key & 0x1FFFFFFF, 0) + 1
    totals = await database.fetchrow("SELECT memories, length FROM memory_totals WHERE org_id = $1", org_id)
    assert tuple(totals or (0, 0)) == (len(words), sum(row["length"] for row in words))
    counted = await database.fetch("SELECT term, memories FROM memory_terms WHERE org_id = $1", org_id)
    assert dict(map(tuple, counted)) == terms
    counted = await database.fetch("SELECT id, memories FROM memory_shelves WHERE org_id = $1", org_id)
    assert dict(map(tuple, counted)) == {row["id"]: shelves.get(row["id"], 0) for row in counted}
    current = await database.fetch("SELECT no FROM memories WHERE org_id = $1 AND ended_at IS NULL", org_id)
    assert {row["no"] for row in current} == {row["memory"] for row in words}
