"""Which format a document has: its name or media type says so, and its first bytes must agree.

Only the beginning is looked at, so that an upload is refused before it is stored; what is wrong further on is found by
whoever reads the document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from memory.documents.refusals import DocumentRefused

Format = Literal["text", "markdown", "html", "csv", "pdf", "docx"]

LOOK: Final = 4096
"""Bytes of the beginning that are enough to tell a format."""

DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "text": "text/plain",
    "markdown": "text/markdown",
    "html": "text/html",
    "csv": "text/csv",
    "pdf": "application/pdf",
    "docx": DOCX,
}

_BY_NAME: Final[Mapping[str, Format]] = {
    **dict.fromkeys(("txt", "text", "log", "rst"), "text"),
    **dict.fromkeys(("md", "markdown", "mdown"), "markdown"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
    **dict.fromkeys(("csv", "tsv"), "csv"),
    "pdf": "pdf",
    "docx": "docx",
}
_BY_TYPE: Final[Mapping[str, Format]] = {
    **{media_type: name for name, media_type in MEDIA_TYPES.items()},
    "text/x-markdown": "markdown",
    "text/x-rst": "text",
    "application/xhtml+xml": "html",
    "text/tab-separated-values": "csv",
    "application/csv": "csv",
    "application/x-pdf": "pdf",
}
# What clients send when they know nothing.
_VAGUE: Final = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"})
_SUPPORTED: Final = "use text, Markdown, HTML, PDF, DOCX or CSV"

# Beginnings of what is certainly no text, and what it is.
_MAGIC: Final = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file of the old kind, or one with a password"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a media file"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"{\\rtf", "an RTF file"),
    (b"%!PS", "a PostScript file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
)
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_CONTROL: Final = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]")
_HTML: Final = re.compile(
    rb"\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html)\b", re.I | re.S
)
_CHARSET: Final = re.compile(r'charset\s*=\s*"?([A-Za-z0-9._:-]{1,40})', re.I)


def format_of(name: str, media_type: str, beginning: bytes) -> Format:
    """The format of a document.

    Args:
        media_type: as in a Content-Type header, empty where nothing is known. The end of the name comes first, since
            that is what a person chose.
        beginning: its first `LOOK` bytes.

    Raises:
        DocumentRefused: empty, of a type that is not read here, or not what it says it is.
    """
    if not beginning:
        raise DocumentRefused("empty", "The document is empty: it has no bytes.")
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    plain_type = media_type.partition(";")[0].strip().lower()
    said = _BY_NAME.get(ending) or _BY_TYPE.get(plain_type)
    found = _seen(beginning)
    if said is None:
        vague = plain_type in _VAGUE and (not ending or len(ending) > 8 or not ending.isalnum())
        if not vague and plain_type != "text/plain":
            what = f".{ending[:20]}" if ending else plain_type[:100]
            raise DocumentRefused(
                "unsupported_type", f"Documents of the type {what} can't be read.", suggestions=(_SUPPORTED,)
            )
        said = found or "text"
    if (found in ("pdf", "docx") and said != found) or (said in ("pdf", "docx") and found != said):
        seen = {"pdf": "a PDF", "docx": "a DOCX or another archive", "html": "HTML"}.get(found or "", "not that")
        raise DocumentRefused(
            "wrong_type",
            f"By its name or media type the document is {said.upper()}, but its content is {seen}.",
            suggestions=("upload it with the name and type that it has",),
        )
    if said not in ("pdf", "docx"):
        _check_text(beginning)
    return said


def charset_of(media_type: str) -> str | None:
    """The charset that a Content-Type header names."""
    found = _CHARSET.search(media_type)
    return found[1] if found else None


def _seen(beginning: bytes) -> Format | None:
    for magic, what in _MAGIC:
        if beginning.startswith(magic):
            code = "encrypted" if magic.startswith(b"\xd0\xcf") else "unsupported_type"
            raise DocumentRefused(
                code,
                f"The document is {what}.",
                suggestions=("save it as DOCX without a password",) if code == "encrypted" else (_SUPPORTED,),
            )
    if b"%PDF-" in beginning[:1024]:  # some have a few bytes before it
        return "pdf"
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "docx"
    return "html" if _HTML.match(beginning.removeprefix(b"\xef\xbb\xbf")) else None


def _check_text(beginning: bytes) -> None:
    if beginning.startswith(_WIDE):
        return
    controls = len(_CONTROL.findall(beginning))
    if b"\x00" in beginning or controls * 100 > len(beginning):
        raise DocumentRefused(
            "binary",
            "The document is said to be text, but its content is binary.",
            suggestions=(_SUPPORTED, "save UTF-16 and UTF-32 with a byte order mark"),
        )
