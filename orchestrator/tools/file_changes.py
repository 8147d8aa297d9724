"""The tools `write_file`, `edit_file`, `move_file` and `delete_file`.

All of them are idempotent: a call that is made again under its key, because a worker died before its outcome was known,
finds that it was made and changes nothing, whatever other calls have done to the file in between.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from kernel.errors import CallerError
from kernel.files import ABSENT, Author, File, FileChanged, Files
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.file_text import guessed_encoding
from orchestrator.tools.files import Path, for_the_model
from orchestrator.tools.tool import Arguments, JSONValue, Tool, ToolContext

_TRIES: Final = 10
_MOST_TEXT: Final = 2_000_000

A = TypeVar("A")


class WriteArguments(Arguments):
    """What to write."""

    path: Path
    content: Annotated[str, Field(max_length=_MOST_TEXT, description="the whole text, or what to append")]
    mode: Annotated[
        Literal["replace", "create", "append"],
        Field(description="replace: in place of what is there; create: only if nothing is there; append: at the end"),
    ] = "replace"


class EditArguments(Arguments):
    """What to change into what."""

    path: Path
    old_text: Annotated[
        str, Field(min_length=1, max_length=_MOST_TEXT, description="exactly as it stands in the file, and only once")
    ]
    new_text: Annotated[str, Field(max_length=_MOST_TEXT, description="what to put in its place")]


class MoveArguments(Arguments):
    """What to move where."""

    source: Path
    target: Path
    replace: Annotated[bool, Field(description="whether a file at the target may be replaced")] = False


class DeleteArguments(Arguments):
    """What to delete."""

    path: Path


class _Change(Tool[A]):
    effect: Literal["idempotent"] = "idempotent"
    timeout = 60.0
    retries = 1
    max_result_bytes = 4_096

    def __init__(self, files: Files) -> None:
        self._files = files

    async def run(self, arguments: A, context: ToolContext) -> JSONValue:
        by = Author(context.user_id, context.run_id, context.idempotency_key)
        async with for_the_model():
            try:
                return await self._change(arguments, (context.org_id, context.session_id), by)
            except (CallerError, ToolFailure):
                # Made again after a crash, a call may find nothing to change any more.
                if await self._files.done_before(context.org_id, context.session_id, context.idempotency_key):
                    return {"done": True}
                raise

    @abstractmethod
    async def _change(self, arguments: A, at: tuple[str, str], by: Author) -> JSONValue:
        """Makes the change in the workspace `at`."""

    async def _read(self, at: tuple[str, str], path: str) -> tuple[File, bytes]:
        async with self._files.open(*at, path) as (file, pieces):
            return file, b"".join([piece async for piece in pieces])


class WriteFile(_Change[WriteArguments]):
    """Writes a text."""

    name = "write_file"
    description = (
        "Writes a text file into this session's workspace, where the user can download it; folders come by themselves. "
        "Replaces the file that is there, unless `mode` says otherwise."
    )
    arguments = WriteArguments

    async def _change(self, arguments: WriteArguments, at: tuple[str, str], by: Author) -> JSONValue:
        data = arguments.content.encode("utf-8", "replace")
        if arguments.mode == "append":
            return await self._append(arguments.path, data, at, by)
        try:
            expected = ABSENT if arguments.mode == "create" else None
            file = await self._files.write(*at, arguments.path, data, by=by, expected=expected)
        except FileChanged:
            raise ToolFailure(f"There is a file {arguments.path!r} already.", reached=False) from None
        return {"path": file.path, "size": file.size}

    async def _append(self, path: str, data: bytes, at: tuple[str, str], by: Author) -> JSONValue:
        for _ in range(_TRIES):
            there = await self._files.list(*at, prefix=path, limit=1)
            old, expected = b"", ABSENT
            if there and there[0].path == path:
                file, old = await self._read(at, path)
                expected = file.etag
            try:
                file = await self._files.write(*at, path, old + data, by=by, expected=expected)
            except FileChanged:
                continue
            return {"path": file.path, "size": file.size}
        raise _busy(path)


class EditFile(_Change[EditArguments]):
    """Replaces one passage."""

    name = "edit_file"
    description = (
        "Replaces one passage of a text file in this session's workspace. `old_text` must stand in the file exactly "
        "once, to the letter: read the file first, and take enough of it to be the only one."
    )
    arguments = EditArguments

    async def _change(self, arguments: EditArguments, at: tuple[str, str], by: Author) -> JSONValue:
        for _ in range(_TRIES):
            file, data = await self._read(at, arguments.path)
            edited = _edited(file.path, data, arguments.old_text, arguments.new_text)
            try:
                file = await self._files.write(
                    *at, file.path, edited, by=by, content_type=file.content_type, expected=file.etag
                )
            except FileChanged:  # by another call at the same time: the passage may be there still
                continue
            return {"path": file.path, "size": file.size}
        raise _busy(arguments.path)


class MoveFile(_Change[MoveArguments]):
    """Gives a file another path."""

    name = "move_file"
    description = "Moves or renames one file of this session's workspace. Folders come and go by themselves."
    arguments = MoveArguments

    async def _change(self, arguments: MoveArguments, at: tuple[str, str], by: Author) -> JSONValue:
        file = await self._files.move(*at, arguments.source, arguments.target, by=by, replace=arguments.replace)
        return {"path": file.path, "size": file.size}


class DeleteFile(_Change[DeleteArguments]):
    """Deletes a file."""

    name = "delete_file"
    description = "Deletes one file of this session's workspace. It can't be brought back."
    arguments = DeleteArguments

    async def _change(self, arguments: DeleteArguments, at: tuple[str, str], by: Author) -> JSONValue:
        await self._files.delete(*at, arguments.path, by=by)
        return {"deleted": arguments.path}


def _edited(path: str, data: bytes, old_text: str, new_text: str) -> bytes:
    encoding = guessed_encoding(data)
    try:
        text = data.decode(encoding) if encoding is not None else None
    except UnicodeDecodeError:
        text = None
    if encoding is None or text is None:
        raise ToolFailure(f"{path!r} is not a text in UTF-8, so it can't be edited.", reached=False)
    if "\r\n" in text and "\r" not in old_text:  # models write plain line ends
        old_text, new_text = (part.replace("\n", "\r\n") for part in (old_text, new_text))
    found = text.count(old_text)
    if not found:
        raise ToolFailure(
            f"old_text does not stand in {path!r}. Read the file, and copy the passage to the letter.", reached=False
        )
    if found > 1 or text.find(old_text, text.find(old_text) + 1) >= 0:
        raise ToolFailure(
            f"old_text stands in {path!r} more than once. Take more of what is around it, so that it is the only one.",
            reached=False,
        )
    return text.replace(old_text, new_text).encode(encoding, "replace")


def _busy(path: str) -> ToolFailure:
    return ToolFailure(f"{path!r} is being changed by others all the time. Try again.", retryable=True)
