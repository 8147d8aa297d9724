"""Frames are valid SSE whatever the event holds, and JSON that Postgres can keep."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
from hypothesis import given
from hypothesis import strategies as some

from cli.sse import FrameParser
from kernel.events import encode_json, printable, render_frame, render_time
from kernel.postgres import Pool

texts = some.text(some.characters(exclude_categories=()), max_size=40)
values = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**53), 2**53) | texts,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(some.dictionaries(texts, values, max_size=6))
def test_any_fields_become_one_frame_that_reads_back(fields: dict[str, Any]) -> None:
    data = encode_json(fields)
    frame = render_frame(7, "tool_result", "ses_a", "run_a", "2026-01-31T12:00:00.000001Z", data)
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 4
    [parsed] = FrameParser().feed(frame)
    assert (parsed.id, parsed.event) == ("7", "tool_result")
    common = {"seq": 7, "session_id": "ses_a", "run_id": "run_a", "at": "2026-01-31T12:00:00.000001Z"}
    read = orjson.loads(parsed.data)
    expected = orjson.loads(encode_json(printable(fields)))
    assert read == common | expected


async def test_what_was_encoded_can_be_kept(database: Pool) -> None:
    nasty = {"nul": "a\x00b", "lone": "\ud83d", "pair": "\U0001f600", "\x00key": ["\udfff"], "line": "a\r\n\u2028b"}
    kept = await database.fetchval("SELECT $1::json ->> 'nul'", encode_json(nasty))
    assert kept == "a\ufffdb"
    assert await database.fetchval("SELECT ($1::json)::jsonb ->> 'pair'", encode_json(nasty)) == "\U0001f600"


async def test_a_time_is_utc_with_microseconds(database: Pool) -> None:
    assert render_time(datetime(2026, 1, 31, 12, 0, 0, 1, UTC)) == "2026-01-31T12:00:00.000001Z"
    at = await database.fetchval("SELECT '2026-01-31 14:00:00.5+02'::timestamptz")
    assert render_time(at) == "2026-01-31T12:00:00.500000Z"


async def test_postgres_does_refuse_what_is_replaced(database: Pool) -> None:
    for text in ('{"x": "\\u0000"}', '{"x": "\\ud800"}'):
        try:
            await database.fetchval("SELECT ($1::json) ->> 'x'", text)
        except asyncpg.PostgresError:
            continue
        raise AssertionError(f"{text} can be kept after all")
