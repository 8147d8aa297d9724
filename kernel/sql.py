"""Named SQL: each `.sql` file beside a module holds statements under `-- name: …` lines.

    SQL = statements(__package__, "runs.sql")
    await db.fetchrow(SQL.get_run, org_id, run_id)

An unknown name is an AttributeError where it is used; two statements of one name are an error at import.
"""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


class Statements:
    """The statements of one file, as attributes."""

    def __init__(self, origin: str, texts: dict[str, str]) -> None:
        self._origin = origin
        self._texts = texts

    def __getattr__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise AttributeError(f"no statement '{name}' in {self._origin}") from None


def statements(package: str | None, filename: str) -> Statements:
    """Reads `filename` of `package`. Text before the first name is the file's own comment."""
    if package is None:
        raise ValueError("statements() needs the package that holds the file: pass __package__")
    parts = _NAME.split(resources.files(package).joinpath(filename).read_text("utf-8"))
    texts: dict[str, str] = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name in texts:
            raise ValueError(f"{package}/{filename}: statement '{name}' is there twice")
        texts[name] = text.strip()
    return Statements(f"{package}/{filename}", texts)
