"""Questions to an org's own Postgres, over TCP, as a role that may only read; and all the ways to ask for more."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.data.dsn import Dsn
from orchestrator.data.postgres import PostgresSources
from orchestrator.data.postgres_process import protection
from orchestrator.egress.gate import Gate
from orchestrator.tools.errors import ToolFailure
from tests.conftest import MakeDatabase
from tests.outside_postgres import OutsidePostgres, outside_postgres
from tests.waiting import eventually


class Shop:
    """A database with a few rows, and who asks it."""

    def __init__(self, outside: OutsidePostgres) -> None:
        self.proxy = outside.proxy
        self.admin = outside.admin
        self.dsn = outside.dsn
        self.sources = PostgresSources(Gate([outside.address]), _itself)


async def _itself(host: str, port: int) -> list[str]:
    return [host]


@pytest.fixture
async def shop(make_database: MakeDatabase) -> AsyncIterator[Shop]:
    async with outside_postgres(await make_database()) as outside:
        yield Shop(outside)


async def ask(shop: Shop, sql: str, *, role: str = "reader", max_rows: int = 100, seconds: float = 5.0) -> object:
    answer = await shop.sources.ask(shop.dsn(role), sql, max_rows=max_rows, seconds=seconds)
    return answer.rows


async def refused(shop: Shop, sql: str, *, role: str = "writer", seconds: float = 5.0) -> str:
    with pytest.raises(ToolFailure) as raised:
        await ask(shop, sql, role=role, seconds=seconds)
    return raised.value.message


async def test_a_question_is_answered_in_rows(shop: Shop) -> None:
    rows = await ask(shop, "SELECT customer, count(*) AS orders, sum(amount) FROM shop.orders GROUP BY 1 ORDER BY 1; ")
    assert rows == [
        {"customer": "customer 0", "orders": 333, "sum": 250249.5},
        {"customer": "customer 1", "orders": 334, "sum": 250750.5},
        {"customer": "customer 2", "orders": 333, "sum": 249750.0},
    ]
    assert await ask(shop, "WITH o AS (SELECT 1 AS one) SELECT * FROM o -- all of it") == [{"one": 1}]
    assert await ask(shop, "SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a DESC") == [{"a": 2}, {"a": 1}]


async def test_a_long_answer_is_cut_by_rows_and_by_bytes(shop: Shop) -> None:
    few = await shop.sources.ask(shop.dsn(), "SELECT id FROM shop.orders ORDER BY id", max_rows=3, seconds=5)
    assert (few.rows, few.more) == ([{"id": 1}, {"id": 2}, {"id": 3}], True)
    wide = "SELECT repeat('x', 8000) AS x FROM generate_series(1, 100)"
    bytes_ = await shop.sources.ask(shop.dsn(), wide, max_rows=100, seconds=5)
    assert (len(bytes_.rows), bytes_.more) == (5, True)
    assert "fewer or shorter columns" in await refused(shop, "SELECT repeat('x', 200000000) AS x")


async def test_its_tables_and_columns_are_listed_as_far_as_the_role_may_read_them(shop: Shop) -> None:
    columns = ["id integer", "customer text", "amount numeric", "note text"]
    tables = await shop.sources.describe(shop.dsn(), seconds=5)
    of_shop = [table for table in tables if table["table"].startswith("shop.")]
    assert of_shop == [{"table": "shop.orders", "about": "one row per order", "columns": columns}]


WRITES = [
    "INSERT INTO shop.orders VALUES (0)",
    "UPDATE shop.orders SET amount = 0",
    "DELETE FROM shop.orders",
    "TRUNCATE shop.orders",
    "DROP TABLE shop.orders",
    "CREATE TABLE shop.mine (a int)",
    "WITH gone AS (DELETE FROM shop.orders RETURNING *) SELECT * FROM gone",
    "WITH a AS (SELECT 1), gone AS (INSERT INTO shop.orders VALUES (0) RETURNING 1) SELECT 1",
    "SELECT * INTO shop.copy FROM shop.orders",
    "EXPLAIN ANALYZE DELETE FROM shop.orders",
    "EXPLAIN (ANALYZE) DELETE FROM shop.orders",
    "SELECT 1; DELETE FROM shop.orders",
    "SELECT 1) AS answer; DELETE FROM shop.orders; SELECT * FROM (SELECT 1",
    "SELECT 1 /* ; */; DELETE FROM shop.orders --",
    "COMMIT",
    "ROLLBACK; DELETE FROM shop.orders",
    "SET TRANSACTION READ WRITE",
    "SET default_transaction_read_only = off",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "DO $$ BEGIN DELETE FROM shop.orders; END $$",
    "CALL shop.anything()",
    "COPY shop.orders TO '/tmp/orders'",
    "COPY shop.orders TO PROGRAM 'cat'",
    "COPY shop.orders FROM PROGRAM 'id'",
    "MERGE INTO shop.orders o USING shop.orders s ON o.id = s.id WHEN MATCHED THEN DELETE",
    "SELECT * FROM shop.orders FOR UPDATE",
    "LOCK TABLE shop.orders",
    "VACUUM shop.orders",
    "NOTIFY channel",
    "PREPARE p AS DELETE FROM shop.orders",
    "GRANT ALL ON shop.orders TO reader",
    "SELECT query_to_xml('DELETE FROM shop.orders', true, true, '')",
    "SELECT \"query_to_xml\"('DELETE FROM shop.orders', true, true, '')",
    "SELECT pg_catalog.query_to_xml('DELETE FROM shop.orders', true, true, '')",
]


@pytest.mark.parametrize("sql", WRITES)
async def test_nothing_can_be_written_even_by_a_role_that_may(shop: Shop, sql: str) -> None:
    assert await refused(shop, sql)
    assert await shop.admin.fetchval("SELECT count(*) FROM shop.orders") == 1000
    assert await shop.admin.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'shop'") == 2


REACHES = [
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT * FROM pg_stat_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT * FROM dblink('host=127.0.0.1', 'SELECT 1') AS t (a int)",
    "SELECT dblink_connect('host=127.0.0.1')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_sleep(60)",
    "SELECT pg_reload_conf()",
    "SELECT nextval('anything')",
]


@pytest.mark.parametrize("sql", REACHES)
async def test_nothing_outside_the_tables_can_be_reached(shop: Shop, sql: str) -> None:
    assert "can't be used here" in await refused(shop, sql)


@pytest.mark.parametrize("sql", [*WRITES, *REACHES])
async def test_what_gets_past_the_filter_stands_before_the_wall(
    shop: Shop, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.data.postgres.checked", lambda text: text.rstrip(";"))
    try:
        await ask(shop, sql, role="reader", seconds=0.5)
    except ToolFailure:
        pass
    else:  # locks and notes that end with the connection
        assert re.search(r"advisory|nothing", sql), f"was answered: {sql}"
    assert await shop.admin.fetchval("SELECT count(*) FROM shop.orders") == 1000
    assert await shop.admin.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'shop'") == 2


async def test_tables_that_the_role_may_not_read_stay_closed(shop: Shop) -> None:
    assert "permission denied for table salaries" in await refused(shop, "SELECT * FROM shop.salaries", role="reader")


async def test_a_question_that_takes_too_long_is_ended(shop: Shop) -> None:
    endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
    assert "longer than 0.2 s" in await refused(shop, endless, role="reader", seconds=0.2)
    active = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active'"
    assert await shop.admin.fetchval(active) == 0


@pytest.mark.parametrize(("role", "why"), [("longhaul", "is a superuser"), ("filer", "may do more on the server")])
async def test_a_role_that_may_do_more_than_read_is_refused(shop: Shop, role: str, why: str) -> None:
    assert why in await refused(shop, "SELECT 1", role=role)


async def test_a_wrong_question_is_told_what_is_wrong_with_it(shop: Shop) -> None:
    assert 'relation "nothing" does not exist' in await refused(shop, "SELECT * FROM nothing")
    assert "can't be read" in await refused(shop, "SELECT FROM WHERE (")
    assert "nested too deep" in await refused(shop, "SELECT " + "(" * 4000 + "1" + ")" * 4000)
    assert "division by zero" in await refused(shop, "SELECT 1 / 0")


async def test_a_database_that_is_away_or_hangs_is_a_failure_that_may_pass(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        with pytest.raises(ToolFailure) as raised:
            await ask(shop, "SELECT 1 AS one", seconds=0.2)
        assert raised.value.retryable

    shop.proxy.drop_reply(b'"one"')
    await fails()
    shop.proxy.vanish()
    await fails()
    await shop.proxy.heal()
    monkeypatch.setattr("orchestrator.data.postgres._CONNECT_SECONDS", 0.3)
    shop.proxy.stall()
    await fails()
    await shop.proxy.heal()
    assert await ask(shop, "SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.parametrize(
    ("dsn", "why"),
    [
        ("postgresql://u:hunter2@127.0.0.1:5432/db", "private or special address"),
        ("postgresql://u:hunter2@10.0.0.1/db", "private or special address"),
        ("postgresql://u:hunter2@[::1]/db", "private or special address"),
        ("postgresql://u:hunter2@2130706433/db", "private or special address"),
        ("postgresql:///db?host=/var/run/postgresql", "names no host"),
        ("postgresql://u:hunter2@%2Fvar%2Frun/db", "not a host name"),
        ("postgresql://u:hunter2@example.com/db?passfile=/etc/passwd", "passfile"),
        ("postgresql://u:hunter2@example.com/db?options=-c%20x", "options"),
        ("postgresql://u:hunter2@a.example,b.example/db", "more than one host"),
        ("postgresql://u:hunter2@example.com/db?sslmode=maybe", "sslmode"),
        ("mysql://u:hunter2@example.com/db", "postgresql://"),
        ("postgresql://u:hunter2@example.com:99999/db", "valid URL"),
        ("hunter2", "postgresql://"),
    ],
)
async def test_an_address_that_may_not_be_reached_is_refused_and_never_repeated(dsn: str, why: str) -> None:
    with pytest.raises(ToolFailure) as raised:
        await Dsn.parse(dsn).pinned(Gate(), _itself)
    assert why in raised.value.message
    assert "hunter2" not in raised.value.message


async def test_a_connection_is_protected_unless_its_owner_says_otherwise() -> None:
    def checks_the_name(mode: str) -> bool | None:
        protected = protection(mode, "db.example.com")
        return protected.check_hostname if isinstance(protected, ssl.SSLContext) else None

    host = "postgresql://u:p@93.184.216.34/db"
    assert Dsn.parse(f"{host}?sslmode=disable").mode == "disable"
    assert Dsn.parse(host).mode == "require"
    modes = ("disable", "require", "verify-ca", "verify-full")
    assert [checks_the_name(mode) for mode in modes] == [None, False, False, True]
    assert "p@" not in repr(Dsn.parse(host))


class Impostor:
    """What a server says that is no Postgres. It signs in whoever comes, and then goes on as it likes."""

    def __init__(self, says: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._says = says

    async def told(self) -> ToolFailure:
        """What comes of a question to it."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            address = "{}:{}".format(*server.sockets[0].getsockname())
            sources = PostgresSources(Gate([address]), _itself)
            with pytest.raises(ToolFailure) as raised:
                await sources.ask(f"postgresql://u:p@{address}/d?sslmode=disable", "SELECT 1", max_rows=1, seconds=0.5)
        return raised.value

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
            await self._says(reader, writer)
            await writer.drain()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def packet(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!i", 4 + len(payload)) + payload


SIGNED_IN = packet(b"R", struct.pack("!i", 0)) + packet(b"S", b"server_version\x0018.0\x00")


async def long_sign_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(packet(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\x00\x00"))
    await reader.readexactly(1)
    offer = await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
    nonce = offer.rpartition(b"r=")[2]
    writer.write(packet(b"R", struct.pack("!i", 11) + b"r=" + nonce + b"x,s=c2FsdHNhbHQ=,i=2000000000"))


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SIGNED_IN + b"N" + struct.pack("!i", 2**31 - 1))
    for _ in range(3_000):
        writer.write(bytes(1_048_576))
        await writer.drain()


async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(packet(b"R", struct.pack("!i", 0)) + packet(b"Z", b"I"))


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(range(256)) * 10)


@pytest.mark.parametrize("says", [long_sign_in, flood, nonsense, garbage])
async def test_a_server_that_is_hostile_neither_stalls_nor_fills_the_worker(
    says: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - begun)

    watching = asyncio.create_task(watch())
    failure = await Impostor(says).told()
    watching.cancel()
    assert "source" in failure.message
    assert longest < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT 12345678901234567890.125::numeric AS x", "12345678901234567890.125"),
        ("SELECT 9007199254740993::bigint AS x", "9007199254740993"),
        ("SELECT 10::numeric ^ 20 + 1 AS x", "100000000000000000001"),
        ("SELECT '1e400'::json AS x", "1e400"),
        ("SELECT -0.125 AS x", -0.125),
        ("SELECT -12 AS x", -12),
        ("SELECT 1.10 AS x", 1.1),
        ("SELECT 'NaN'::float8 AS x", "NaN"),
    ],
)
async def test_a_number_comes_over_as_it_is(shop: Shop, sql: str, value: object) -> None:
    assert await ask(shop, sql) == [{"x": value}]


async def test_json_that_nobody_could_read_is_said_to_be_unreadable(shop: Shop) -> None:
    for depth in (150, 1_500):
        sql = f"SELECT (repeat('[', {depth}) || repeat(']', {depth}))::json AS x"
        assert "JSON that can't be read" in await refused(shop, sql)


async def test_a_first_row_that_is_too_long_is_not_left_out_in_silence(shop: Shop) -> None:
    assert "fewer or shorter columns" in await refused(shop, "SELECT repeat(E'\\u20ac', 16300) AS x")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT (0.01::float8).pg_sleep",
        "SELECT (a.pid).pg_terminate_backend FROM pg_stat_activity a",
        'SELECT (a.pid)."pg_terminate_backend" FROM pg_stat_activity a',
        "SELECT (a.pids)[1].pg_cancel_backend FROM a",
        'SELECT U&"pg\\005fsleep"(0.01)',
        "SELECT u&\"set\\005fconfig\"('statement_timeout', '0', true)",
    ],
)
async def test_a_function_that_is_written_in_another_way_is_found(shop: Shop, sql: str) -> None:
    assert "can't be used here" in await refused(shop, sql)


async def test_columns_that_are_called_like_functions_can_be_asked(shop: Shop) -> None:
    sql = "SELECT t.http_status, copy_id, (t).lo_x FROM (SELECT 1 AS http_status, 2 AS copy_id, 3 AS lo_x) AS t"
    assert await ask(shop, sql) == [{"http_status": 1, "copy_id": 2, "lo_x": 3}]


async def test_a_question_that_is_given_up_leaves_no_process(shop: Shop) -> None:
    before = _children()
    asking = asyncio.create_task(ask(shop, "SELECT count(*) FROM generate_series(1, 10000000000)", seconds=20))
    active = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active'"

    async def begun() -> bool:
        return bool(await shop.admin.fetchval(active))

    async def ended() -> bool:
        return not await begun()

    await eventually(begun)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert _children() == before
    await eventually(ended)


def _children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
