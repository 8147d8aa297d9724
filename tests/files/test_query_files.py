"""Questions over files: right answers, clear errors, and no way out of the tables."""

from __future__ import annotations

import asyncio
import gzip
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from kernel.blobs import BlobPlace, Blobs
from kernel.file_quotas import FileLimits
from kernel.files import Author, File, Files
from kernel.ids import new_id
from kernel.postgres import Pool
from kernel.sessions import create_session
from orchestrator.data.files import FileQueries, QueryLimits, named_in, tables_of
from orchestrator.tools.query_files import QueryFiles
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from tests.waiting import eventually

CSV = b"name,amount,day\nAda,10,2026-05-01\nBob,20,2026-05-02\nAda,12,2026-05-03\n"
LIMITS = FileLimits(file_bytes=200_000_000, session_bytes=400_000_000, session_files=100)


class Asker:
    """Asks the files of one session."""

    def __init__(self, files: Files, org: str, session: str, limits: QueryLimits) -> None:
        self.files = files
        self.at = org, session
        self.box = Toolbox([QueryFiles(FileQueries(files, limits))])

    async def write(self, path: str, data: bytes, content_type: str | None = None) -> None:
        await self.files.write(*self.at, path, data, by=Author(), content_type=content_type)

    async def call(self, sql: str | None = None) -> ToolOutcome:
        context = ToolContext(self.at[0], None, None, self.at[1], new_id("run"), "call", "key")
        return await self.box.call("query_files", {"sql": sql} if sql else {}, context, allowed=["query_files"])

    async def ask(self, sql: str | None = None) -> Any:
        outcome = await self.call(sql)
        assert outcome.status == "ok", outcome
        return orjson.loads(outcome.result) if outcome.result.startswith("{") else outcome.result

    async def rows(self, sql: str) -> list[list[Any]]:
        rows: list[list[Any]] = (await self.ask(sql))["rows"]
        return rows

    async def refused(self, sql: str) -> str:
        outcome = await self.call(sql)
        assert outcome.status == "error", outcome
        assert "longhaul-query" not in outcome.result
        return outcome.result


@pytest.fixture
def limits() -> QueryLimits:
    return QueryLimits(seconds=20.0)


@pytest.fixture
async def asker(database: Pool, org: str, tmp_path: Path, limits: QueryLimits) -> Asker:
    session = await create_session(database, org)
    asker = Asker(Files(database, Blobs(BlobPlace(tmp_path.as_uri())), LIMITS), org, session.id, limits)
    await asker.write("reports/may.csv", CSV)
    return asker


def parquet(folder: Path, sql: str) -> bytes:
    target = folder / "made.parquet"
    with duckdb.connect(":memory:") as db:
        db.execute(f"COPY ({sql}) TO '{target}' (FORMAT parquet)")
    return target.read_bytes()


async def test_files_of_all_formats_are_tables(asker: Asker, tmp_path: Path) -> None:
    await asker.write("people.parquet", parquet(tmp_path, "SELECT 'Ada' AS name, 36 AS age"))
    await asker.write("tags.json", b'[{"name": "Ada", "tags": ["a", "b"]}]')
    await asker.write("log.jsonl", b'{"name": "Ada", "n": 1}\n{"name": "Bob", "n": 2}\n')
    await asker.write("more.tsv", b"name\tcity\nAda\tLondon\n")
    await asker.write("packed.csv.gz", gzip.compress(CSV))
    await asker.write("typed", b"a,b\n1,2\n", "text/csv; charset=utf-8")
    listed = await asker.ask()
    assert {table["table"]: table["path"] for table in listed["tables"]} == {
        "log": "log.jsonl",
        "may": "reports/may.csv",
        "more": "more.tsv",
        "packed": "packed.csv.gz",
        "people": "people.parquet",
        "tags": "tags.json",
        "typed": "typed",
    }
    assert await asker.rows(
        "SELECT name, sum(amount), any_value(age), any_value(tags), any_value(city), any_value(n) "
        "FROM may JOIN people USING (name) JOIN tags USING (name) JOIN more USING (name) JOIN log USING (name) "
        "GROUP BY name"
    ) == [["Ada", 22, 36, ["a", "b"], "London", 1]]
    assert await asker.rows("SELECT count(*) FROM packed") == [[3]]
    assert await asker.rows("SELECT * FROM typed") == [[1, 2]]
    assert await asker.rows('SELECT max(day) FROM "reports/may.csv"') == [["2026-05-03"]]
    assert await asker.rows("SELECT max(day) FROM 'reports/may.csv'") == [["2026-05-03"]]


async def test_columns_have_names_and_types(asker: Asker) -> None:
    answer = await asker.ask("SELECT name, amount, day FROM may ORDER BY day LIMIT 1;")
    assert answer["columns"] == [
        {"name": "name", "type": "VARCHAR"},
        {"name": "amount", "type": "BIGINT"},
        {"name": "day", "type": "DATE"},
    ]
    assert (answer["count"], "note" in answer) == (1, False)
    assert [row[:2] for row in await asker.rows("DESCRIBE may")] == [
        ["name", "VARCHAR"],
        ["amount", "BIGINT"],
        ["day", "DATE"],
    ]
    assert len(await asker.rows("SUMMARIZE may")) == 3
    assert await asker.rows("WITH a AS (FROM may) SELECT count(*) FROM a") == [[3]]


async def test_values_of_all_kinds_become_json(asker: Asker) -> None:
    sql = """SELECT 1.5::DECIMAL(10,2), 'nan'::DOUBLE, 170141183460469231731687303715884105727::HUGEINT,
        '\\x00\\xff'::BLOB, MAP {1: 'a'}, {'a': [1, NULL]}, INTERVAL 1 DAY, uuid() IS NOT NULL, TIME '01:02:03',
        TIMESTAMPTZ '2026-01-01 00:00:00+00', chr(0) || 'x', NULL, true"""
    [row] = await asker.rows(sql)
    assert row[:6] == [
        "1.50",
        "nan",
        "170141183460469231731687303715884105727",
        "<2 bytes>",
        {"1": "a"},
        {"a": [1, None]},
    ]
    assert row[7:10] == [True, "01:02:03", "2026-01-01 00:00:00+00:00"]
    assert row[11:] == [None, True]


async def test_tables_whose_names_would_be_the_same_go_by_their_paths(asker: Asker) -> None:
    await asker.write("may.json", b'[{"x": 1}]')
    await asker.write("REPORTS/MAY.csv", b"x\n7\n")
    tables = {table["path"]: table["table"] for table in (await asker.ask())["tables"]}
    assert len(set(tables.values())) == 3
    for path, table in tables.items():
        assert len(await asker.rows(f'SELECT * FROM "{table}"')) == (3 if path == "reports/may.csv" else 1)
    await asker.write('odd "name; DROP TABLE x.csv', b"x\n1\n")
    tables = {table["path"]: table["table"] for table in (await asker.ask())["tables"]}
    odd = tables['odd "name; DROP TABLE x.csv']
    assert await asker.rows(f"SELECT * FROM {odd}") == [[1]]


async def test_what_a_question_does_not_name_is_not_loaded(asker: Asker) -> None:
    await asker.write("a.csv", b"\xff\xfe\x00broken")
    await asker.write("broken.parquet", b"nonsense")
    assert await asker.rows("SELECT count(*) FROM may AS m WHERE name = 'Ada'") == [[2]]


async def test_a_broken_file_that_is_called_like_a_word_of_sql_stops_no_other_question(asker: Asker) -> None:
    await asker.write("select.csv", b"\x89PNG\r\n\x1a\n\0\0\1\xff")
    await asker.write("sum.parquet", b"nonsense")
    assert await asker.rows("SELECT sum(amount) FROM may") == [[42]]
    assert "'sum.parquet' can't be read as Parquet" in await asker.refused("SELECT sum(amount) FROM sum")
    assert "'select.csv' can't be read as CSV" in await asker.refused('SELECT * FROM "select.csv"')


@pytest.mark.parametrize("limits", [QueryLimits(seconds=20.0, loaded_bytes=1_000)])
async def test_a_large_file_that_is_called_like_a_word_of_sql_stops_no_other_question(asker: Asker) -> None:
    await asker.write("count.csv", b"a\n" + b"1\n" * 2_000)
    assert await asker.rows("SELECT count(*) FROM may") == [[3]]
    assert "at once" in await asker.refused("SELECT count(*) FROM count")


async def test_names_of_many_files_are_looked_for_at_once() -> None:
    now = datetime.now(UTC)
    files = [
        File(f"a/long/folder/name/table {n} of many.csv", 1, "text/csv", "", "b", None, None, now, now)
        for n in range(1_000)
    ]
    tables = tables_of(files)
    begun = time.process_time()
    assert named_in("a/long/folder/name/table " * 800, tables) == []
    assert [
        table.file.path for table in named_in('FROM TABLE_7_OF_MANY, "a/long/folder/name/table 8 of many.csv"', tables)
    ] == [
        "a/long/folder/name/table 7 of many.csv",
        "a/long/folder/name/table 8 of many.csv",
    ]
    assert time.process_time() - begun < 0.2


async def test_a_name_with_quotes_is_found_as_sql_has_it(asker: Asker) -> None:
    for folder in ("a", "b"):
        await asker.write(f'{folder}/x"y.csv', folder.encode() + b"\n1\n")
    assert await asker.rows('SELECT a FROM "a/x""y.csv"') == [[1]]


@pytest.mark.parametrize(
    ("path", "data", "why"),
    [
        ("bad.parquet", b"PAR1 nonsense", "can't be read as Parquet"),
        ("bad.parquet", b"", "can't be read as Parquet"),
        ("bad.json", b'{"a": 1', "can't be read as JSON"),
        ("bad.json", b"\xff\xfe\xfd", "can't be read as JSON"),
        ("bad.csv", b"\x89PNG\r\n\x1a\n\0\0\1\xff", "can't be read as CSV"),
        ("bad.csv.gz", b"no gzip at all", "can't be read as CSV"),
    ],
)
async def test_a_file_that_is_broken_is_said_to_be(asker: Asker, path: str, data: bytes, why: str) -> None:
    await asker.write(path, data)
    told = await asker.refused("SELECT * FROM bad")
    assert why in told
    assert path in told
    assert "table0" not in told


async def test_odd_texts_are_read(asker: Asker) -> None:
    await asker.write("latin.csv", "wort,zahl\ngrüße,1\n".encode("latin-1"))
    assert await asker.rows("SELECT * FROM latin") == [["grüße", 1]]
    await asker.write("mixed.csv", b"a,b\n" + b"1,2\n" * 30_000 + b"x,2\n")
    assert await asker.rows("SELECT a FROM mixed WHERE a NOT LIKE '1'") == [["x"]]
    await asker.write("head.csv", b"a,b\n")
    assert await asker.rows("SELECT count(*) FROM head") == [[0]]
    await asker.write("none.json", b"[]")
    assert (await asker.call("SELECT * FROM none")).status in ("ok", "error")
    await asker.write("none.csv", b"")
    assert (await asker.call('SELECT * FROM "none.csv"')).status in ("ok", "error")


async def test_an_unknown_table_or_column_is_answered_with_what_there_is(asker: Asker) -> None:
    assert "Tables there are: may" in await asker.refused("SELECT * FROM june")
    assert "amount" in await asker.refused("SELECT amounts FROM may")
    assert "syntax" in (await asker.refused("SELECT FROM WHERE")).lower()
    assert "sql" in await asker.refused("x" * 20_001)


async def test_a_session_without_data_is_said_to_have_none(asker: Asker) -> None:
    await asker.files.delete(*asker.at, "reports/may.csv", by=Author())
    assert "no CSV" in await asker.ask()
    assert "Tables there are: none" in await asker.refused("SELECT * FROM may")


WAYS_OUT = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_json_objects('/etc/passwd')",
    "SELECT * FROM read_parquet('/etc/passwd')",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM read_duckdb('/tmp/x.db')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '../../../etc/passwd'",
    "SELECT * FROM 'table0.csv'",
    "SELECT * FROM read_csv('table0.csv')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM read_csv('http://127.0.0.1:1/x')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('/etc/passwd')",
    "WITH a AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM a",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT getenv('PATH')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_extensions()",
    "EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')",
    "EXPLAIN ANALYZE COPY may TO '/tmp/longhaul-escaped'",
    "COPY may TO '/tmp/longhaul-escaped'",
    "COPY (SELECT 1) TO 'escaped.csv'",
    "COPY may FROM '/etc/passwd'",
    "EXPORT DATABASE '/tmp/longhaul-escaped'",
    "IMPORT DATABASE '/tmp'",
    "ATTACH '/tmp/longhaul-escaped.db'",
    "ATTACH ':memory:' AS other",
    "INSTALL httpfs",
    "INSTALL httpfs FROM community",
    "LOAD httpfs",
    "LOAD '/tmp/x.duckdb_extension'",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "SET threads = 64",
    "PRAGMA enable_external_access=true",
    "PRAGMA memory_limit='100GB'",
    "PRAGMA profiling_output='/tmp/longhaul-escaped'",
    "CALL enable_logging()",
    "CALL pragma_version()",
    "CREATE SECRET (TYPE s3, KEY_ID 'x')",
    "CREATE TABLE x AS SELECT 1",
    "INSERT INTO may VALUES ('Eve', 1, '2026-01-01')",
    "DELETE FROM may",
    "DROP TABLE may",
    "UPDATE may SET amount = 0",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY may TO '/tmp/longhaul-escaped'",
    "SELECT 1; SET lock_configuration = false; SELECT 2",
    "/* a */ ; SELECT 1; -- b\nATTACH '/tmp/longhaul-escaped'",
    "BEGIN",
    "PREPARE a AS SELECT 1",
    "CHECKPOINT",
    "VACUUM",
    "USE main",
    ";",
    "-- nothing",
]


@pytest.mark.parametrize("limits", [QueryLimits(seconds=20.0)])
async def test_no_question_gets_out_of_the_tables(asker: Asker) -> None:
    gate = asyncio.Semaphore(2)

    async def tried(sql: str) -> tuple[str, str]:
        async with gate:
            return sql, (await asker.call(sql)).status

    got_out = [sql for sql, status in await asyncio.gather(*(tried(sql) for sql in WAYS_OUT)) if status != "error"]
    assert got_out == []
    assert not [name for name in await asyncio.to_thread(os.listdir, "/tmp") if name.startswith("longhaul-escaped")]


async def test_a_question_sees_neither_environment_nor_home(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_SENTINEL", "sentinel-of-the-tests")
    [row] = await asker.rows("SELECT list(value) FROM duckdb_settings()")
    assert "sentinel" not in str(row)
    assert str(Path.home() / ".duckdb") not in str(row)


BOMBS = [
    "SELECT count(*) FROM range(100000000000) a, range(100000000000) b",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
    "WITH RECURSIVE t(n) AS (SELECT 'x' UNION ALL SELECT n || n FROM t) SELECT max(length(n)) FROM t",
    "SELECT * FROM range(100000000000) ORDER BY random()",
    "SELECT list(a) FROM range(100000000000) t(a)",
    "SELECT repeat('x', 3000000000)",
    "SELECT string_agg(repeat('x', 100000), '') FROM range(1000000)",
    "SELECT regexp_matches(repeat('a', 30000) || '!', '(a+)+$') FROM range(1000000000)",
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "SELECT " + "+".join(["1"] * 9_000),
]


@pytest.mark.parametrize("limits", [QueryLimits(seconds=2.0, database_bytes=200_000_000, memory_bytes=1_200_000_000)])
@pytest.mark.parametrize("sql", BOMBS, ids=range(len(BOMBS)))
async def test_a_bomb_ends_in_words(asker: Asker, sql: str) -> None:
    outcome = await asker.call(sql)
    assert outcome.status == "error" or len(outcome.result) < 60_000
    assert outcome.duration_ms < 14_000
    assert "fault of its own" not in outcome.result
    assert await asker.rows("SELECT count(*) FROM may") == [[3]]


async def test_a_flood_is_cut(asker: Asker) -> None:
    answer = await asker.ask("SELECT range AS n FROM range(1000000)")
    assert (answer["count"], answer["rows"][-1]) == (200, [199])
    assert "more rows" in answer["note"]
    answer = await asker.ask("SELECT repeat('x', 1000000) AS long FROM range(100)")
    assert 1 <= answer["count"] < 20
    assert "1000000 characters in all" in answer["rows"][0][0]
    answer = await asker.ask("SELECT list(n) AS long FROM range(5000) t(n)")
    assert answer["rows"][0][0][-1] == "… 5000 in all"
    columns = ", ".join(f"{n} AS c{n}" for n in range(600))
    assert "600 columns" in await asker.refused(f"SELECT {columns}")
    wide = ", ".join(f"repeat('ж', 3000) AS c{n}" for n in range(100))
    assert "too long" in await asker.refused(f"SELECT {wide}")


@pytest.mark.parametrize("limits", [QueryLimits(seconds=20.0, database_bytes=100_000_000, memory_bytes=1_000_000_000)])
async def test_a_packed_bomb_is_refused(asker: Asker) -> None:
    await asker.write("bomb.csv.gz", gzip.compress(b"a,b\n" + b"1234567890,1234567890\n" * 20_000_000, 9))
    assert "memory" in await asker.refused("SELECT count(*) FROM bomb")


async def test_a_csv_of_100_mb_is_asked_or_refused_by_its_size(asker: Asker) -> None:
    line = b"1234567,some words that are in a row,3.14159\n"
    data = b"a,b,c\n" + line * (100_000_000 // len(line))
    await asker.write("large.csv", data)
    assert await asker.rows("SELECT count(*), min(c) FROM large") == [[100_000_000 // len(line), 3.14159]]
    await asker.write("larger.csv", data)
    assert "at once" in await asker.refused("SELECT count(*) FROM large, larger")


async def test_a_question_that_is_given_up_leaves_no_process_and_no_files(
    asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "questions"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    async def questions() -> list[str]:
        return await asyncio.to_thread(os.listdir, place)

    asking = asyncio.create_task(asker.call("SELECT count(*) FROM range(100000000000) a, range(100000) b, may"))
    await eventually(questions)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await questions() == []
