"""The tools `list_files` and `read_file`, and what all tools of files have in common.

They see the workspace of the session that they are called in, and no other: its id comes with the call, not from the
model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final, Literal

from pydantic import Field

from kernel.errors import CallerError, StoreUnavailable
from kernel.file_paths import MAX_BYTES
from kernel.files import File, Files
from kernel.postgres import UNAVAILABLE
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.file_text import Encoding, Passage, passage
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

Path = Annotated[str, Field(min_length=1, max_length=MAX_BYTES, description="such as reports/may.csv")]

_LISTED: Final = 200
_LISTED_BYTES: Final = 40_000


@asynccontextmanager
async def for_the_model() -> AsyncIterator[None]:
    """What goes wrong with files, as words for the model."""
    try:
        yield
    except CallerError as error:
        advice = f" You can: {'; '.join(error.suggestions)}." if error.suggestions else ""
        raise ToolFailure(f"{error.message}{advice}", reached=False) from error
    except (StoreUnavailable, *UNAVAILABLE) as error:
        raise ToolFailure("The files are out of reach at the moment.", retryable=True) from error


class ListArguments(Arguments):
    """What to list."""

    prefix: Annotated[
        str, Field(max_length=MAX_BYTES, description="only paths that begin so, such as reports/; empty for all")
    ] = ""
    after: Annotated[str, Field(max_length=MAX_BYTES, description="the last path of the list before this one")] = ""


class ReadArguments(Arguments):
    """What to read."""

    path: Path
    offset: Annotated[int, Field(ge=1, le=2**31, description="the first line to read, from 1")] = 1
    limit: Annotated[int, Field(ge=1, le=5_000, description="lines to read, at most")] = 1_000
    skip: Annotated[
        int, Field(ge=0, le=2**31, description="characters of the first line to leave out, for very long lines")
    ] = 0
    encoding: Annotated[Encoding, Field(description="auto finds UTF-8 and UTF-16")] = "auto"


class ListFiles(Tool[ListArguments]):
    """Lists paths."""

    name = "list_files"
    description = "Lists the files of this session's workspace: path, size in bytes, type, and when it was changed."
    arguments = ListArguments
    effect: Literal["read"] = "read"
    timeout = 15.0
    retries = 1

    def __init__(self, files: Files) -> None:
        self._files = files

    async def run(self, arguments: ListArguments, context: ToolContext) -> JSONValue:
        async with for_the_model():
            found = await self._files.list(
                context.org_id, context.session_id, prefix=arguments.prefix, after=arguments.after, limit=_LISTED + 1
            )
            usage = await self._files.usage(context.org_id, context.session_id)
        shown: list[JSONValue] = []
        size, last = 0, ""
        for file in found[:_LISTED]:
            size += len(file.path.encode()) + 120
            if size > _LISTED_BYTES:
                break
            shown.append(_entry(file))
            last = file.path
        result: dict[str, JSONValue] = {"files": shown}
        if len(shown) < len(found):
            result["note"] = f"there are more: call again with after={last!r}"
        result["workspace"] = {
            "files": usage.files,
            "bytes": usage.bytes,
            "bytes_left": max(0, self._files.limits.session_bytes - usage.bytes),
        }
        return result


class ReadFile(Tool[ReadArguments]):
    """Reads a passage of a text."""

    name = "read_file"
    description = (
        "Reads a text file of this session's workspace, or a part of it: `limit` lines from line `offset` on. Long "
        "passages are cut, with a note on how to read on. Files that are not text can't be read with it."
    )
    arguments = ReadArguments
    effect: Literal["read"] = "read"
    timeout = 60.0
    retries = 1

    def __init__(self, files: Files) -> None:
        self._files = files

    async def run(self, arguments: ReadArguments, context: ToolContext) -> JSONValue:
        async with (
            for_the_model(),
            self._files.open(context.org_id, context.session_id, arguments.path) as (file, pieces),
        ):
            if not file.size:
                return "[the file is empty]"
            found = await passage(
                pieces, arguments.offset, arguments.limit, arguments.skip, arguments.encoding, size=file.size
            )
        if found is None:
            return (
                f"[{file.path} is not text: {file.size} bytes of {file.content_type}. Use a tool that knows this "
                "format, or name its encoding if it is text after all.]"
            )
        return _with_notes(found, arguments)


def _with_notes(found: Passage, arguments: ReadArguments) -> str:
    notes = []
    if found.encoding != "utf-8":
        notes.append(f"read as {found.encoding}")
    if not found.text and not found.more:
        notes.append(f"there is nothing from line {arguments.offset} on: the file has {found.lines} lines")
    if found.cut_at is not None:
        notes.append(f"line {found.last} goes on: read from offset={found.last}, skip={found.cut_at}")
    elif found.more:
        notes.append(f"lines {arguments.offset} to {found.last}; the file goes on: read from offset={found.last + 1}")
    return f"{found.text}\n[{'; '.join(notes)}]" if notes else found.text


def _entry(file: File) -> JSONValue:
    return {
        "path": file.path,
        "size": file.size,
        "type": file.content_type,
        "changed": file.updated_at.isoformat(timespec="seconds"),
    }
