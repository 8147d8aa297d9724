"""What a model reads for memories: one turn of a conversation, and what it needs of what went before to understand it.

Only what the user, the assistant and tools said in the turn can be evidence; what went before is context. It is bounded
whatever the turn was: long texts lose their middle, and of many tool results the last ones are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

import asyncpg
import orjson
from pydantic import ValidationError

from kernel.agent_config import AgentConfig, ModelChoice
from kernel.content import text_of
from kernel.postgres import Pool
from memory.records import Scope
from orchestrator.extraction.requests import EXTRACT, SQL
from orchestrator.models.choice import merged
from orchestrator.window import records
from orchestrator.window.record import Said, Window
from orchestrator.window.tokens import clipped, estimate

_MOST_MESSAGES: Final = 200
_MOST_CHARACTERS: Final = 20_000
_MOST_OVERHEARD: Final = 40
_OVERHEARD_CHARACTERS: Final = 2_000
_MOST_HEARD: Final = 60
_HEARD_CHARACTERS: Final = 12_000
_USER_TOKENS: Final = 3_000
_ANSWER_TOKENS: Final = 1_500
_RESULT_TOKENS: Final = 500
_EARLIER_TOKENS: Final = 300
_SUMMARY_TOKENS: Final = 1_000
_MOST_EARLIER: Final = 6
_MOST_TOKENS: Final = 12_000
_ORDER_TOKENS: Final = 2_500

Role = Literal["user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Line:
    """One message. `tool` names the tool whose result it is."""

    role: Role
    text: str
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """A turn. Its `lines` are numbered from 1; `earlier`, `summary` and `asked` are what went before it.

    `at` is when the run ended, `behind` says that an earlier turn of the session is still to be read: then there are no
    lines. `overheard` is what tools said in earlier turns, `heard` what they said in this one, in whole: nobody is told
    of either, words are compared with them. `shared` says that earlier turns were other users': what was said in them
    is left out here, for it is not this user's.
    """

    scope: Scope
    turn: int
    at: datetime
    session_began: datetime
    model: ModelChoice
    behind: bool
    lines: Sequence[Line]
    earlier: Sequence[Line] = ()
    summary: str = ""
    asked: Sequence[str] = ()
    overheard: Sequence[str] = ()
    heard: Sequence[str] = ()
    shared: bool = False


async def read(db: Pool, org_id: str, run_id: str) -> Material | None:
    """The turn of a run; None where there is nothing to read: it did not succeed, it is gone, no user said anything."""
    row = await db.fetchrow(SQL.turn, org_id, run_id, EXTRACT)
    if row is None:
        return None
    try:
        config = AgentConfig.model_validate_json(row["config"])
    except ValidationError:
        return None  # of another release; its runs fail too
    if row["behind"]:
        return _put_together(org_id, run_id, row, config, [], Window(0), [], [])
    of_turn = (org_id, row["session_id"], row["turn"])
    rows = await db.fetch(SQL.said, *of_turn, _MOST_MESSAGES, _MOST_CHARACTERS)
    overheard = await db.fetch(SQL.overheard, *of_turn, _MOST_OVERHEARD, _OVERHEARD_CHARACTERS)
    heard = await db.fetch(SQL.heard, *of_turn, _MOST_HEARD, _HEARD_CHARACTERS)
    window = _without(await records.load(db, org_id, row["session_id"], before=row["turn"]), row["of_others"])
    texts = [record["text"] for record in overheard], [record["text"] for record in heard]
    # Counting the tokens of long texts takes a while.
    return await asyncio.to_thread(_put_together, org_id, run_id, row, config, rows, window, *texts)


def _put_together(
    org_id: str,
    run_id: str,
    row: asyncpg.Record,
    config: AgentConfig,
    rows: Sequence[asyncpg.Record],
    window: Window,
    overheard: Sequence[str],
    heard: Sequence[str],
) -> Material | None:
    room = min(_MOST_TOKENS, max(config.context.max_tokens - _ORDER_TOKENS, 400))
    lines = _within(_lines(rows), room)
    if not row["behind"] and not any(line.role == "user" for line in lines):
        return None
    return Material(
        scope=Scope(org_id, row["user_id"], row["agent_id"], row["session_id"], run_id),
        turn=row["turn"],
        at=row["finished_at"],
        session_began=row["session_began"],
        model=merged(config.model, orjson.loads(row["model"] or "null")),
        behind=row["behind"],
        lines=lines,
        earlier=_earlier(window.dialogue),
        summary=clipped(window.summary.text, _SUMMARY_TOKENS) if window.summary else "",
        asked=_asked(window),
        overheard=overheard,
        heard=heard,
        shared=bool(row["of_others"]),
    )


def _without(window: Window, turns: Sequence[int] | None) -> Window:
    """The window without what was said in these turns."""
    if not turns:
        return window
    gone = frozenset(turns)
    asked = [one for one in window.summary.asked if one.turn not in gone] if window.summary else []
    # The text of a summary is of all who spoke.
    summary = replace(window.summary, text="", asked=asked) if window.summary else None
    return replace(window, dialogue=[said for said in window.dialogue if said.at[0] not in gone], summary=summary)


def _lines(rows: Sequence[asyncpg.Record]) -> list[Line]:
    names: dict[str, str] = {}
    lines: list[Line] = []
    for row in rows:
        text = row["text"] if row["text"] is not None else text_of(orjson.loads(row["parts"] or '""'))
        calls = orjson.loads(row["tool_calls"] or "null") or ()
        names.update((str(call.get("id")), str(call.get("name"))[:64]) for call in calls)
        match row["role"]:
            case "tool":
                tool = names.get(str(row["tool_call_id"]), "a tool")
                lines.append(Line("tool", clipped(text, _RESULT_TOKENS), tool))
            case "user":
                lines.append(Line("user", clipped(text, _USER_TOKENS)))
            case "assistant" if not calls:
                lines.append(Line("assistant", clipped(text, _ANSWER_TOKENS)))
    return [line for line in lines if line.text.strip()]


def _within(lines: Sequence[Line], room: int) -> list[Line]:
    """What fits: the user's words first, then the assistant's, then tools', of each the last ones."""
    kept: set[int] = set()
    lines = [replace(line, text=clipped(line.text, room - 12)) if line.role == "user" else line for line in lines]
    for role in ("user", "assistant", "tool"):
        for place in reversed(range(len(lines))):
            if lines[place].role == role and (tokens := estimate(lines[place].text) + 12) <= room:
                kept.add(place)
                room -= tokens
    return [line for place, line in enumerate(lines) if place in kept]


def _earlier(dialogue: Sequence[Said]) -> list[Line]:
    found: list[Line] = []
    for said in dialogue[-_MOST_EARLIER:]:
        role: Role = "user" if said.role == "user" else "assistant"
        if said.role in ("user", "assistant") and (text := text_of(said.content).strip()):
            found.append(Line(role, clipped(text, _EARLIER_TOKENS)))
    return found


def _asked(window: Window) -> list[str]:
    """The user's words before those of the last messages, for what is said now may repeat them."""
    older = [text_of(said.content) for said in window.dialogue[:-_MOST_EARLIER] if said.role == "user"]
    asked = [one.text for one in window.summary.asked] if window.summary else []
    return [*asked, *(clipped(text, _EARLIER_TOKENS) for text in older[-50:])]
