"""One question to DuckDB, in a process that is made for it and ends with it.

Run as a script, alone: it imports nothing of this project, and has neither its environment nor its connections. What
it is to do comes as JSON on standard input; the answer goes to standard output as JSON. Files lie in the working
directory under names that the caller chose. They are loaded first; then DuckDB is locked up, so that the question can
read nothing but the tables, write nothing outside of them, and unlock nothing. Memory, time and files are bounded by
the operating system too, for what DuckDB's own limits don't see.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

R = TypeVar("R")

_CELL_CHARACTERS = 4_000
_DEPTH = 20
_LOCK = (
    "SET enable_external_access = false",
    "SET allow_community_extensions = false",
    "SET max_temp_directory_size = '0 bytes'",
    "SET lock_configuration = true",
)
_READERS = {
    "csv": ("read_csv('{file}', sample_size=-1)", "read_csv('{file}', sample_size=-1, encoding='latin-1')"),
    "parquet": ("read_parquet('{file}')",),
    "json": ("read_json('{file}', maximum_object_size=67108864)",),
}


class Refused(Exception):
    """Something that the asking side should be told in these words."""


class Unreadable(Refused):
    """A file is no table. That matters only if the question is about it, and does not just use a word of its name."""


def main() -> None:
    """Reads the task, answers it."""
    task = json.load(sys.stdin)
    _limit(task["memory_bytes"], task["cpu_seconds"])
    try:
        answer = _answer(task)
    except Refused as refused:
        answer = {"error": str(refused)}
    except MemoryError:
        answer = {"error": "The question needs too much memory. Let it group, filter or limit more."}
    sys.stdout.write(json.dumps(answer, ensure_ascii=True, allow_nan=False))
    sys.stdout.flush()


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def _answer(task: Mapping[str, Any]) -> dict[str, Any]:
    sys.modules["pytz"] = _time_zones()
    import duckdb

    db = duckdb.connect(
        ":memory:",
        config={
            "threads": "1",
            "memory_limit": f"{task['database_bytes']} bytes",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": "",
            "home_directory": ".",
            "secret_directory": "./none",
            "extension_directory": "./none",
        },
    )
    db.execute("SET TimeZone = 'UTC'")
    with _Clock(db.interrupt, task["seconds"]) as clock:
        unreadable: list[tuple[Sequence[str], str]] = []
        for table in task["tables"]:
            try:
                _call(clock, partial(_load, db, duckdb.Error, table))
            except Unreadable as error:
                unreadable.append((table["names"], str(error)))
        for statement in _LOCK:
            db.execute(statement)
        try:
            return _call(clock, partial(_ask, db, duckdb, task))
        except Refused as refused:
            raise Refused(_why_not_there(str(refused), unreadable) or str(refused)) from None


def _why_not_there(told: str, unreadable: Sequence[tuple[Sequence[str], str]]) -> str | None:
    """What is wrong with the table that DuckDB says is not there."""
    told = told.casefold()
    for names, why in unreadable:
        for name in names:
            if f"table with name {name.casefold()} " in told or f'access file "{name.casefold()}"' in told:
                return why
    return None


def _load(db: Any, error_kind: type[Exception], table: Mapping[str, Any]) -> None:
    if "refused" in table:
        raise Unreadable(table["refused"])
    *others, last = _READERS[table["format"]]
    first, *aliases = table["names"]
    name = _quoted(first)
    for reader in (*others, last):
        try:
            db.execute(f"CREATE TABLE {name} AS FROM {reader.format(file=table['file'])}")
            break
        except error_kind as error:
            if reader is last or "utf-8" not in str(error):
                if _is_memory(error):
                    raise
                reason = _told(error, 600).replace(table["file"], table["path"])
                kind = table["format"].upper() if table["format"] != "parquet" else "Parquet"
                raise Unreadable(f"The file {table['path']!r} can't be read as {kind}: {reason}") from None
    for alias in aliases:
        db.execute(f"CREATE VIEW {_quoted(alias)} AS FROM {name}")


def _ask(db: Any, duckdb: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    try:
        statements = db.extract_statements(task["sql"])
        if len(statements) != 1:
            raise Refused("Ask one SELECT at a time.")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            kind = str(statements[0].type).rpartition(".")[2]
            raise Refused(f"Only SELECT can be asked (also WITH, DESCRIBE, SUMMARIZE, EXPLAIN), not {kind}.")
        db.execute(statements[0])
        columns = [{"name": column[0], "type": str(column[1])} for column in db.description or ()]
        rows, more = _rows(db, len(columns), task["max_rows"], task["max_bytes"])
    except duckdb.Error as error:
        if _is_memory(error) or isinstance(error, duckdb.InterruptException):
            raise
        raise Refused(_told(error, 1_500)) from None
    return {"columns": columns, "rows": rows, "more": more}


def _rows(db: Any, width: int, max_rows: int, max_bytes: int) -> tuple[list[list[Any]], bool]:
    if width > 500:
        raise Refused(f"The answer has {width} columns, which is too many: select those that matter.")
    rows: list[list[Any]] = []
    size = 0
    while found := db.fetchmany(20):
        for values in found:
            row = [_shown(value, 0) for value in values]
            size += len(json.dumps(row, ensure_ascii=False))
            if len(rows) == max_rows or size > max_bytes:
                if not rows:
                    raise Refused("A row of the answer is too long: select fewer or shorter columns.")
                return rows, True
            rows.append(row)
    return rows, False


def _shown(value: Any, depth: int) -> Any:
    """A value as JSON has it, and not longer than a cell may be."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**53) < value < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping) and depth < _DEPTH:
        return {_cut(str(key)): _shown(item, depth + 1) for key, item in _beginning(value.items())}
    if isinstance(value, list | tuple) and depth < _DEPTH:
        shown = [_shown(item, depth + 1) for item in _beginning(value)]
        return shown if len(shown) == len(value) else [*shown, f"… {len(value)} in all"]
    return _cut(str(value))


def _beginning(items: Any) -> Iterator[Any]:
    for place, item in enumerate(items):
        if place == 1_000:
            return
        yield item


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else f"{text[:_CELL_CHARACTERS]}… ({len(text)} characters in all)"


def _call(clock: _Clock, work: Callable[[], R]) -> R:
    """Does the work; what its limits put an end to is said in words."""
    try:
        return work()
    except Refused:
        raise
    except MemoryError:
        raise
    except Exception as error:
        if clock.struck:
            raise Refused(f"It took longer than {clock.seconds:g} s. Ask for less, or filter first.") from None
        if _is_memory(error):
            raise MemoryError from None
        raise


class _Utc(tzinfo):
    """Universal time, with the methods that DuckDB expects of pytz."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "UTC"

    def localize(self, when: datetime) -> datetime:
        return when.replace(tzinfo=self)


def _time_zones() -> ModuleType:
    """What DuckDB asks for the one time zone that is used here, without the package that it would import."""
    module = ModuleType("pytz")
    utc = _Utc()
    vars(module).update(timezone=lambda name: utc, utc=utc, UTC=utc)
    return module


class _Clock:
    """Interrupts the work when its time is over."""

    def __init__(self, interrupt: Callable[[], None], seconds: float) -> None:
        self.seconds = seconds
        self.struck = False
        self._interrupt = interrupt
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True

    def __enter__(self) -> _Clock:
        self._timer.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._timer.cancel()

    def _strike(self) -> None:
        self.struck = True
        self._interrupt()


def _is_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryException" or "bad_alloc" in str(error)


def _told(error: Exception, most: int) -> str:
    """The message without the drawing of where it is, and without advice about files and settings."""
    lines: Sequence[str] = str(error).splitlines()
    kept = []
    for line in lines:
        if line.strip().lower().startswith(("file = ", "delimiter = ", "possible solution", "the search space used")):
            break
        kept.append(line.rstrip())
    text = "\n".join(line for line in kept if line)
    return text if len(text) <= most else f"{text[:most]}…"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


if __name__ == "__main__":
    main()
