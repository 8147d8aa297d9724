"""The tool `query_files`: SQL over the tables that a session's files are."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from orchestrator.data.files import FileQueries
from orchestrator.tools.files import for_the_model
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

_LISTED: Final = 100


class QueryFilesArguments(Arguments):
    """What to ask."""

    sql: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=20_000,
            description="one SELECT in DuckDB's SQL; leave it out to see which tables there are",
        ),
    ] = None


class QueryFiles(Tool[QueryFilesArguments]):
    """Asks one question."""

    name = "query_files"
    description = (
        "Asks the CSV, TSV, Parquet and JSON files (also .gz) of this session's workspace with SQL of DuckDB. Every "
        'file is a table: reports/may.csv is the table may, also "reports/may.csv" in quotes. Call it without sql to '
        "see the tables; DESCRIBE may shows columns, SUMMARIZE may what is in them. Only reading; one statement. Long "
        "answers are cut: count, sum, filter and sort in SQL, and use LIMIT."
    )
    arguments = QueryFilesArguments
    effect: Literal["read"] = "read"
    timeout = 120.0
    retries = 0
    max_result_bytes = 65_536

    def __init__(self, queries: FileQueries) -> None:
        self._queries = queries

    async def run(self, arguments: QueryFilesArguments, context: ToolContext) -> JSONValue:
        where = context.org_id, context.session_id
        async with for_the_model():
            if arguments.sql is None:
                return await self._tables(where)
            answer = await self._queries.ask(*where, arguments.sql)
        rows = answer["rows"]
        result: dict[str, JSONValue] = {"columns": answer["columns"], "rows": rows, "count": len(rows)}
        if answer["more"]:
            result["note"] = "there are more rows than these: aggregate, filter or use LIMIT and OFFSET"
        return result

    async def _tables(self, where: tuple[str, str]) -> JSONValue:
        tables = await self._queries.tables(*where)
        shown: list[JSONValue] = [
            {"table": table.names[0], "path": table.file.path, "bytes": table.file.size} for table in tables[:_LISTED]
        ]
        if not shown:
            return "There are no CSV, TSV, Parquet or JSON files in this session."
        return {"tables": shown} | ({"note": f"{len(tables)} in all"} if len(tables) > _LISTED else {})
