"""Paths of files in a session's workspace: what they look like, and what is refused.

They are names in a table and never reach a file system, so nothing can be reached through them. They are held to a
strict shape all the same, for people download the files and tools unpack them.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from kernel.errors import InvalidInput

MAX_BYTES: Final = 512
MAX_DEPTH: Final = 16
MAX_PART: Final = 255
"""Bytes of a name, which is what file systems take."""

# Control characters, halves of surrogate pairs, line and paragraph separators.
_REFUSED: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
# What is written instead of broken UTF-8, a byte order mark, and characters that turn the reading direction around.
_REFUSED_CHARACTERS: Final = frozenset(
    "\ufffd\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def checked_path(path: str, *, field: str = "path") -> str:
    """`path` as files are kept by: relative, `/` between its parts, in Unicode's normal form C; case matters.

    Raises:
        InvalidInput: it is empty, absolute, longer than 512 bytes or deeper than 16 parts; a part is empty, longer
            than 255 bytes, `.` or `..`; it holds a backslash, a control character or one that changes the reading
            direction.
    """
    if len(path) > MAX_BYTES:
        raise _bad(field, f"must be at most {MAX_BYTES} bytes long")
    path = unicodedata.normalize("NFC", path)
    if not path:
        raise _bad(field, "must not be empty")
    for character in path:
        if unicodedata.category(character) in _REFUSED or character in _REFUSED_CHARACTERS:
            raise _bad(field, f"must not hold the character U+{ord(character):04X}")
    if "\\" in path:
        raise _bad(field, "must have / between its parts, not a backslash")
    if len(path.encode()) > MAX_BYTES:
        raise _bad(field, f"must be at most {MAX_BYTES} bytes long")
    if path.startswith("/"):
        raise _bad(field, "must be relative, such as `reports/may.csv`: without / at its beginning")
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise _bad(field, f"must have at most {MAX_DEPTH} parts")
    if "" in parts:
        raise _bad(field, "must name a file: no part of it may be empty")
    if any(len(part.encode()) > MAX_PART for part in parts):
        raise _bad(field, f"must not have a part of more than {MAX_PART} bytes")
    if "." in parts or ".." in parts:
        raise _bad(field, "must not have `.` or `..` as a part")
    return path


def checked_prefix(prefix: str) -> str:
    """What paths are to begin with: the beginning of a path, or nothing.

    Raises:
        InvalidInput: no path can begin so.
    """
    if not prefix:
        return prefix
    whole = checked_path(prefix.removesuffix("/"), field="prefix")
    return f"{whole}/" if prefix.endswith("/") else whole


def content_type_of(path: str) -> str:
    """The type that the end of the name stands for."""
    return _TYPES.get(path.rpartition("/")[2].rpartition(".")[2].lower(), "application/octet-stream")


def _bad(field: str, what: str) -> InvalidInput:
    return InvalidInput(f"The {field} {what}.", field=field)


_TYPES: Final = {
    "csv": "text/csv",
    "css": "text/css",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "gif": "image/gif",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "md": "text/markdown",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "pdf": "application/pdf",
    "png": "image/png",
    "py": "text/x-python",
    "sql": "application/sql",
    "svg": "image/svg+xml",
    "tsv": "text/tab-separated-values",
    "txt": "text/plain",
    "webp": "image/webp",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "application/xml",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "zip": "application/zip",
}
