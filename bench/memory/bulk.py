"""Memories put into the tables by COPY, as many as wanted: what `remember_all` would write, without its round trips.

Binary rows for memories, memory_words and the table of a space. Foreign keys are not checked and counters are made at
the end, from what is there; the text index and the graph are taken off by who loads much, and built afterwards.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import asyncpg
import numpy as np

from bench.memory.prose import Batch
from memory.words import Words, keys, words

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = struct.pack("!h", -1)
_MEMORIES: Final = ("no", "id", "org_id", "kind", "text", "content_hash", "shelf", "provenance")
_WORDS: Final = ("memory", "shelf", "keys", "impacts", "length")
_SPACE: Final = ("memory", "shelf", "kind", "in_graph", "embedding")
_KEY: Final = np.dtype([("length", ">i4"), ("value", ">i8")])
_TERMS: Final = 1 << 29
_CHUNK: Final = 1 << 20

_COUNT = (
    """
    INSERT INTO memory_totals (org_id, memories, length)
    SELECT s.org_id, count(*), sum(w.length) FROM memory_words w JOIN memory_shelves s ON s.id = w.shelf GROUP BY 1
    ON CONFLICT (org_id) DO UPDATE SET memories = excluded.memories, length = excluded.length
    """,
    """
    INSERT INTO memory_terms (org_id, term, memories)
    SELECT s.org_id, (k & 536870911)::integer, count(*)
    FROM memory_words w JOIN memory_shelves s ON s.id = w.shelf, unnest(w.keys) AS k GROUP BY 1, 2
    ON CONFLICT (org_id, term) DO UPDATE SET memories = excluded.memories
    """,
    """
    UPDATE memory_shelves s SET memories = w.n
    FROM (SELECT shelf, count(*) AS n FROM memory_words GROUP BY shelf) AS w WHERE w.shelf = s.id
    """,
    "SELECT setval(pg_get_serial_sequence('memories', 'no'), (SELECT max(no) FROM memories))",
)


async def load(
    connection: asyncpg.Connection[asyncpg.Record],
    org_id: str,
    shelf: int,
    batch: Batch,
    *,
    space: int,
    first: int,
    in_graph: bool,
) -> None:
    """Puts a batch on a shelf; `first` is the number of the first one. Inside the caller's transaction, if any."""
    numbers = range(first, first + len(batch.texts))
    read = [words(text) for text in batch.texts]
    await connection.execute("SET session_replication_role = replica")  # no triggers, so no foreign keys
    try:
        for table, columns, rows in (
            ("memories", _MEMORIES, memory_rows(numbers, org_id, shelf, batch.texts)),
            ("memory_words", _WORDS, word_rows(numbers, shelf, read)),
            (f"memory_space_{space}", _SPACE, vector_rows(numbers, shelf, batch, in_graph=in_graph)),
        ):
            await connection.copy_to_table(table, source=stream(rows), columns=columns, format="binary", timeout=600.0)
    finally:
        await connection.execute("SET session_replication_role = DEFAULT")


async def count(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Brings all counters in line with what was loaded."""
    async with connection.transaction():
        await connection.execute("SET LOCAL work_mem = '256MB'")
        for statement in _COUNT:
            await connection.execute(statement, timeout=900.0)


async def stream(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Rows as COPY reads them."""
    held = bytearray(_HEADER)
    for row in rows:
        held += row
        if len(held) > _CHUNK:
            yield bytes(held)
            held.clear()
    yield bytes(held) + _TRAILER


def memory_rows(numbers: Iterable[int], org_id: str, shelf: int, texts: Sequence[str]) -> Iterable[bytes]:
    org, at = org_id.encode(), struct.pack("!q", shelf)
    for no, text in zip(numbers, texts, strict=True):
        body = text.encode()
        yield _row(
            struct.pack("!q", no),
            f"mem_{no:032x}".encode(),
            org,
            b"fact",
            body,
            hashlib.sha256(body).digest(),
            at,
            b"model",
        )


def word_rows(numbers: Iterable[int], shelf: int, read: Iterable[Words]) -> Iterable[bytes]:
    at = struct.pack("!q", shelf)
    for no, one in zip(numbers, read, strict=True):
        entries = np.empty(len(one.numbers), _KEY)
        entries["length"], entries["value"] = 8, keys(shelf, one.numbers)
        amount = len(one.numbers)
        impacts = (
            struct.pack("!iii", _TERMS, amount, 0)
            + np.asarray(one.numbers, ">i4").tobytes()
            + np.asarray(one.impacts, ">f4").tobytes()
        )
        array = struct.pack("!iiIii", 1, 0, 20, amount, 1) + entries.tobytes()
        yield _row(struct.pack("!q", no), at, array, impacts, struct.pack("!i", one.length))


def vector_rows(numbers: Iterable[int], shelf: int, batch: Batch, *, in_graph: bool) -> Iterable[bytes]:
    at, flag = struct.pack("!q", shelf), b"\1" if in_graph else b"\0"
    halves = batch.vectors.astype(">f2")
    head = struct.pack("!HH", halves.shape[1], 0)
    for no, half in zip(numbers, halves, strict=True):
        yield _row(struct.pack("!q", no), at, b"fact", flag, head + half.tobytes())


def _row(*fields: bytes) -> bytes:
    return struct.pack("!h", len(fields)) + b"".join([struct.pack("!i", len(field)) + field for field in fields])
