"""The tools `note` and `notes`: an agent's scratch state, which stays in its session and is shown to it at each
step."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from kernel.postgres import STORE_ERRORS, Pool
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext
from orchestrator.window import records

MOST_BYTES: Final = 32_768
"""UTF-8 bytes of all notes of a session, their keys included."""

Key = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.:/-]+$")]


class NoteArguments(Arguments):
    """Which note, and what it is to say."""

    key: Annotated[Key, Field(description="letters, digits and . : / _ -; the same key again replaces the note")]
    text: Annotated[str, Field(max_length=MOST_BYTES, description="an empty text deletes the note")]


class NotesArguments(Arguments):
    """Which note."""

    key: Annotated[Key | None, Field(description="one of them; without it, all")] = None


class Note(Tool[NoteArguments]):
    """Sets or deletes one note. Making the same call again changes nothing."""

    name = "note"
    description = (
        "Keeps a small note for the rest of this conversation, such as a plan, an intermediate result or what is still "
        "to be done. You see all notes at each step. Set a note again to change it; an empty text deletes it. All "
        "notes together hold 32 kB. Never keep passwords or keys."
    )
    arguments = NoteArguments
    effect = "idempotent"
    timeout = 15.0
    retries = 1
    max_result_bytes = 1_024

    def __init__(self, db: Pool) -> None:
        self._db = db

    async def run(self, arguments: NoteArguments, context: ToolContext) -> JSONValue:
        changes = {arguments.key: arguments.text or None}
        try:
            kept = await records.change_notes(
                self._db, context.org_id, context.session_id, changes, most_bytes=MOST_BYTES
            )
        except STORE_ERRORS as error:
            raise ToolFailure("Notes can't be kept at the moment.", retryable=True) from error
        if kept is None:
            raise ToolFailure(
                f"Not kept: all notes together would exceed {MOST_BYTES} bytes. Shorten this one, or delete others."
            )
        return {"notes": sorted(kept)}


class Notes(Tool[NotesArguments]):
    """Reads notes."""

    name = "notes"
    description = "Reads the notes of this conversation: one by its key, or all of them."
    arguments = NotesArguments
    effect = "read"
    timeout = 15.0
    retries = 1
    max_result_bytes = 65_536

    def __init__(self, db: Pool) -> None:
        self._db = db

    async def run(self, arguments: NotesArguments, context: ToolContext) -> JSONValue:
        try:
            found = await records.notes(self._db, context.org_id, context.session_id)
        except STORE_ERRORS as error:
            raise ToolFailure("Notes can't be read at the moment.", retryable=True) from error
        if arguments.key is None:
            return found
        if arguments.key not in found:
            raise ToolFailure(f"There is no note {arguments.key!r}. There are: {', '.join(sorted(found)) or 'none'}.")
        return found[arguments.key]
