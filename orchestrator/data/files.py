"""Questions over the files of a session: CSV, Parquet and JSON as tables of DuckDB, in a process of its own.

For each question the files that it names are copied into a private folder, under names of ours, and a process is
started there that loads them, locks itself up and asks (`duckdb_process.py`). It gets an empty environment and no
secret, and is killed when its time is over. No more than a few run at the same time in one worker.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson

from kernel.files import File, Files
from orchestrator.data.process import asked
from orchestrator.tools.errors import ToolFailure

_PROCESS: Final = Path(__file__).with_name("duckdb_process.py")
_FORMATS: Final = {
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
}
_TYPES: Final = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/json": "json",
    "application/x-ndjson": "json",
}
_START_SECONDS: Final = 10.0
_MOST_OUTPUT: Final = 2_000_000
_LISTED: Final = 1_000


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Of one question. `database_bytes` is what DuckDB may use, `memory_bytes` the address space of the whole process;
    `loaded_bytes` of files at most are loaded."""

    seconds: float = 30.0
    rows: int = 200
    answer_bytes: int = 48_000
    loaded_bytes: int = 128 * 1_048_576
    database_bytes: int = 512 * 1_048_576
    memory_bytes: int = 2 * 1_073_741_824


@dataclass(frozen=True, slots=True)
class Table:
    """A file as a table. It goes by all of `names`; the first is the shortest. Case does not matter in them."""

    file: File
    format: str
    names: Sequence[str]


class FileQueries:
    """Asks. One per worker; at most `at_once` processes run at the same time."""

    def __init__(self, files: Files, limits: QueryLimits | None = None, *, at_once: int = 2) -> None:
        self._files = files
        self._limits = limits or QueryLimits()
        self._turns = asyncio.Semaphore(at_once)

    async def tables(self, org_id: str, session_id: str) -> list[Table]:
        """The files that can be asked."""
        return tables_of(await self._files.list(org_id, session_id, limit=_LISTED))

    async def ask(self, org_id: str, session_id: str, sql: str) -> Mapping[str, Any]:
        """The answer: `columns` with name and type, `rows` as lists, and whether there are `more`.

        Raises:
            ToolFailure: for the model: why there is none.
            CallerError, StoreUnavailable: of the files.
        """
        there = await self.tables(org_id, session_id)
        tables = await asyncio.to_thread(named_in, sql, there)
        async with self._turns:
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="longhaul-query-"))
            try:
                loads = await self._load(org_id, session_id, tables, folder)
                answer = await self._run(folder, loads, sql)
            finally:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        if "error" in answer:
            known = ", ".join(table.names[0] for table in there[:50]) or "none"
            hint = f"\nTables there are: {known}." if "does not exist" in answer["error"] else ""
            raise ToolFailure(f"{answer['error']}{hint}", reached=False)
        return answer

    async def _load(
        self, org_id: str, session_id: str, tables: Sequence[Table], folder: Path
    ) -> list[Mapping[str, Any]]:
        """Copies their files, the small ones first. What is too large is an error only for who really asks it."""
        loads: list[Mapping[str, Any]] = []
        size = 0
        for number, table in enumerate(sorted(tables, key=lambda table: table.file.size)):
            load = {"path": table.file.path, "format": table.format, "names": table.names}
            size += table.file.size
            if size > self._limits.loaded_bytes:
                why = (
                    f"At most {self._limits.loaded_bytes} bytes of files can be asked at once: {table.file.path!r} is "
                )
                loads.append(load | {"refused": f"{why}too large, alone or with the others that are named."})
                continue
            name = f"table{number}.{table.format}{'.gz' if table.file.path.lower().endswith('.gz') else ''}"
            await self._files.download_to(org_id, session_id, table.file.path, folder / name)
            loads.append(load | {"file": name})
        return loads

    async def _run(self, folder: Path, tables: Sequence[Mapping[str, Any]], sql: str) -> dict[str, Any]:
        limits = self._limits
        task = {
            "sql": sql,
            "tables": tables,
            "seconds": limits.seconds,
            "cpu_seconds": int(limits.seconds + _START_SECONDS),
            "max_rows": limits.rows,
            "max_bytes": limits.answer_bytes,
            "database_bytes": limits.database_bytes,
            "memory_bytes": limits.memory_bytes,
        }
        try:
            output = await asked(
                _PROCESS,
                orjson.dumps(task),
                seconds=limits.seconds + _START_SECONDS,
                most_bytes=_MOST_OUTPUT,
                env={"HOME": str(folder), "LANG": "C.UTF-8"},
                folder=folder,
            )
        except TimeoutError:
            raise ToolFailure(f"It took longer than {limits.seconds:g} s. Ask for less, or filter first.") from None
        try:
            answer: dict[str, Any] = orjson.loads(output)
        except orjson.JSONDecodeError:
            raise ToolFailure(
                "The question was too much: it needs too much memory or time. Let it group, filter or limit more."
            ) from None
        return answer


def named_in(sql: str, tables: Sequence[Table]) -> list[Table]:
    """Those that `sql` may speak of; what only looks so is loaded for nothing. For a thread: it may take a while."""
    text = sql.casefold()

    def occurs(name: str) -> bool:
        written = {name, name.replace('"', '""'), name.replace("'", "''")}
        return any(each in text and re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text) for each in written)

    return [table for table in tables if any(occurs(name.casefold()) for name in table.names)]


def tables_of(files: Sequence[File]) -> list[Table]:
    """Those of the files that can be asked, each with names that are its alone."""
    found = [(file, format) for file in files if (format := _format(file)) is not None]
    stems = Counter(_identifier(_stem(file.path)) for file, _ in found)
    taken = {name for name, times in stems.items() if name and times == 1}
    tables = []
    for number, (file, format) in enumerate(found, 1):
        stem = _identifier(_stem(file.path))
        names = [stem] if stem in taken else []
        if file.path.casefold() not in taken:
            taken.add(file.path.casefold())
            names.append(file.path)
        if not names:
            names = [next(name for n in count(number) if (name := f"file_{n}") not in taken)]
            taken.add(names[0])
        tables.append(Table(file, format, names))
    return tables


def _format(file: File) -> str | None:
    name = file.path.rpartition("/")[2].lower().removesuffix(".gz")
    end = name.rpartition(".")[2] if "." in name else ""
    return _FORMATS.get(end) or _TYPES.get(file.content_type.partition(";")[0].strip().lower())


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return name.rpartition(".")[0] or name


def _identifier(text: str) -> str:
    """A name that SQL takes without quotes."""
    name = "".join(character if character.isalnum() else "_" for character in text.casefold()).strip("_")
    return f"t_{name}" if name[:1].isdigit() else name
