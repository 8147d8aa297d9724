"""What Postgres keeps of windows. Every statement names the org."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg
import orjson

from kernel.content import text_of
from kernel.events import encode_json
from kernel.leases import ClaimedRun
from kernel.postgres import Connection, Pool, patiently
from kernel.sql import statements
from orchestrator.window.record import Place, Result, Summary, Window, dialogue, summary

SQL = statements(__package__, "records.sql")

MOST_DIALOGUE: Final = 1_000
"""Messages behind the summary that a window holds, at most."""

MOST_RESULTS: Final = 12
_SUMMARIES_KEPT: Final = 8


async def load(db: Pool, org_id: str, session_id: str, *, before: int | None = None, oldest: bool = False) -> Window:
    """The window of a session before turn `before`; None: before the first one that has not ended. Where it has more
    messages than it holds, the latest, or the `oldest`."""
    arguments = (org_id, session_id, before, MOST_DIALOGUE, oldest)
    row = await patiently(lambda: db.fetchrow(SQL.load, *arguments))
    if row is None:  # deleted meanwhile
        return Window(0 if before is None else before - 1)
    return Window(
        row["turn"],
        row["version"] or 0,
        dialogue(orjson.loads(row["dialogue"] or "[]")),
        summary(orjson.loads(row["summary"] or "null")),
        [Result(one["id"], one["tool"], one["bytes"], one["turn"]) for one in orjson.loads(row["results"] or "[]")],
        orjson.loads(row["notes"] or "{}"),
    )


async def keep_summary(
    db: Pool, org_id: str, session_id: str, base: Place, made: Summary, *, model: str, used: tuple[int, int], tell: bool
) -> bool:
    """Adds a summary that goes on from the one that ends at `base`. False where that is not the newest any more, or
    the session is gone. `used` are tokens of input and output, `tell` whether a later run is to say so in its log."""
    asked = encode_json([{"turn": one.turn, "text": one.text} for one in made.asked])
    figures = (made.messages, made.tokens_before, made.tokens_after, list(used), tell)
    try:
        kept = await db.fetchval(
            SQL.keep_summary, org_id, session_id, *base, *made.upto, _printable(made.text), asked, model, *figures
        )
    except asyncpg.ForeignKeyViolationError:
        return False
    if kept:
        await db.execute(SQL.forget_summaries, org_id, session_id, _SUMMARIES_KEPT)
    return bool(kept)


async def keep_results(db: Pool, org_id: str, session_id: str, results: Sequence[Result]) -> None:
    """Adds large results to those that later turns are told of."""
    rows = [{"id": one.id, "tool": one.tool, "bytes": one.bytes, "turn": one.turn} for one in results[-MOST_RESULTS:]]
    try:
        await db.execute(SQL.keep_results, org_id, session_id, encode_json(rows), MOST_RESULTS)
    except asyncpg.ForeignKeyViolationError:
        return


async def keep_run_summary(db: Pool, run: ClaimedRun, path: str, upto: int, text: str, model: str) -> None:
    """Keeps what the agent at `path` did up to position `upto`; nothing where the run is another owner's by now."""
    await db.execute(SQL.keep_run_summary, run.org_id, run.id, path, upto, _printable(text), model, run.epoch)


async def run_summary(db: Pool, run: ClaimedRun, path: str, before: int) -> tuple[int, str] | None:
    """What an earlier owner of the run kept: the position up to which it reaches, and the text."""
    row = await patiently(lambda: db.fetchrow(SQL.run_summary, run.org_id, run.id, path, before))
    return None if row is None else (row["upto_position"], row["text"])


async def find_result(db: Pool, org_id: str, session_id: str, result_id: str) -> str | None:
    """The whole text of a tool's result in this session."""
    content = await db.fetchval(SQL.result, org_id, session_id, result_id)
    return None if content is None else text_of(orjson.loads(content))


async def notes(db: Pool | Connection, org_id: str, session_id: str) -> dict[str, str]:
    """The notes of a session by their keys."""
    found: dict[str, str] = orjson.loads(await db.fetchval(SQL.notes, org_id, session_id) or "{}")
    return found


async def change_notes(
    db: Pool, org_id: str, session_id: str, changes: Mapping[str, str | None], *, most_bytes: int
) -> dict[str, str] | None:
    """Sets notes, or deletes those that are None; all of them then. None, and nothing changed, where they would take
    more than `most_bytes`."""
    async with db.acquire() as connection, connection.transaction():
        present: dict[str, str] = orjson.loads(await connection.fetchval(SQL.notes_locked, org_id, session_id) or "{}")
        changed: dict[str, Any] = {**present, **{key: _clean(text) for key, text in changes.items()}}
        changed = {key: text for key, text in changed.items() if text is not None}
        if sum(len(key.encode()) + len(text.encode()) for key, text in changed.items()) > most_bytes:
            return None
        if changed != present:
            await connection.execute(SQL.keep_notes, org_id, session_id, encode_json(changed))
        return changed


def _clean(text: str | None) -> str | None:
    return None if text is None else _printable(text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
