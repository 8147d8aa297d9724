"""The files of a session, as a sandbox sees them: copies in a directory of their own, for the time of one call."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from kernel.errors import LonghaulError, NotFound
from kernel.files import Files
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import ToolContext

MOUNTED: Final = "/files"
"""Where the sandbox has them."""

SEEN: Final = f"The session's files can be read below {MOUNTED}, such as open('{MOUNTED}/notes.txt').read()."
"""For the description of a tool."""

_MOST_FILES: Final = 200
_MOST_BYTES: Final = 128 * 1024 * 1024


class SessionFiles:
    """Copies what a call needs. Code that does not speak of `/files` needs nothing, and costs nothing."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @asynccontextmanager
    async def needed_by(self, code: str, context: ToolContext) -> AsyncIterator[Path | None]:
        """A directory with the session's files, which others may only read, or None if `code` does not speak of them.

        Raises:
            ToolFailure: they are too many or too large, or the store is away.
        """
        if MOUNTED not in code:
            yield None
            return
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="longhaul-files-"))
        try:
            await self._copy(folder, context)
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _copy(self, folder: Path, context: ToolContext) -> None:
        where = context.org_id, context.session_id
        try:
            found = await self._files.list(*where, limit=_MOST_FILES + 1)
            if len(found) > _MOST_FILES or sum(file.size for file in found) > _MOST_BYTES:
                raise ToolFailure(
                    f"The session has more than {_MOST_FILES} files or {_MOST_BYTES // 1_048_576} MB of them: code "
                    "can't be given them. Delete what is not needed, or use read_file."
                )
            for file in found:
                target = folder / file.path
                await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
                try:
                    await self._files.download_to(*where, file.path, target)
                except NotFound:  # deleted meanwhile
                    continue
        except LonghaulError as error:
            raise ToolFailure(f"The session's files can't be read: {error.message}", retryable=True) from None
