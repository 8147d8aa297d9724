"""The tools `list_sources` and `query_source`: what an agent may ask of its org's databases."""

from __future__ import annotations

from typing import Annotated, Final

import orjson
from pydantic import Field

from kernel.postgres import Pool
from kernel.sources import Source, sources_open_to
from orchestrator.data.postgres import PostgresSources
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

_SCHEMA_BYTES: Final = 48_000


class ListArguments(Arguments):
    """What to list."""

    source: Annotated[str | None, Field(max_length=64, description="a source's name: lists its tables and columns")] = (
        None
    )


class QueryArguments(Arguments):
    """What to ask whom."""

    source: Annotated[str, Field(min_length=1, max_length=64, description="a source's name")]
    sql: Annotated[str, Field(min_length=1, max_length=20_000, description="one SELECT statement of PostgreSQL")]


class _OfSources:
    def __init__(self, db: Pool, postgres: PostgresSources) -> None:
        self._db = db
        self._postgres = postgres

    async def _open(self, context: ToolContext) -> dict[str, Source]:
        return {one.name: one for one in await sources_open_to(self._db, context.org_id, context.agent_id)}

    async def _source(self, name: str, context: ToolContext) -> tuple[Source, str]:
        """The source and its address."""
        found = await self._open(context)
        if name not in found:
            raise ToolFailure(f"There is no source {name!r}. There are: {', '.join(found) or 'none'}.", reached=False)
        return found[name], await context.vault.reveal(found[name].secret)


class ListSources(_OfSources, Tool[ListArguments]):
    """Says what can be asked."""

    name = "list_sources"
    description = (
        "Lists the databases that can be asked with query_source. With the name of one, lists its tables and columns: "
        "look there before you write SQL."
    )
    arguments = ListArguments
    effect = "read"
    timeout = 60.0
    retries = 1

    async def run(self, arguments: ListArguments, context: ToolContext) -> JSONValue:
        if arguments.source is None:
            found = await self._open(context)
            return [{"source": one.name, "about": one.description} for one in found.values()]
        source, dsn = await self._source(arguments.source, context)
        tables = await self._postgres.describe(dsn, seconds=source.timeout_seconds)
        shown, size = [], 0
        for table in tables:
            size += len(orjson.dumps(table))
            if size > _SCHEMA_BYTES:
                break
            shown.append(table)
        hidden = len(tables) - len(shown)
        return {"tables": shown} | ({"note": f"{hidden} more tables are not shown"} if hidden else {})


class QuerySource(_OfSources, Tool[QueryArguments]):
    """Asks one question."""

    name = "query_source"
    description = (
        "Asks a database one question in PostgreSQL's SQL: one SELECT (WITH, joins, aggregates, window functions). "
        "Nothing can be written. Long answers are cut: let the database count, sum and sort, and use LIMIT."
    )
    arguments = QueryArguments
    effect = "read"
    timeout = 150.0
    retries = 1

    async def run(self, arguments: QueryArguments, context: ToolContext) -> JSONValue:
        source, dsn = await self._source(arguments.source, context)
        answer = await self._postgres.ask(dsn, arguments.sql, max_rows=source.max_rows, seconds=source.timeout_seconds)
        result: dict[str, JSONValue] = {"rows": answer.rows, "count": len(answer.rows)}
        if answer.more:
            result["note"] = "there are more rows than these: aggregate, filter or use LIMIT and OFFSET"
        return result
