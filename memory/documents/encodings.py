"""Bytes to text. UTF-8 unless the document says otherwise; what can't be told for sure is refused, because text that
is decoded wrongly is found by nobody and quoted wrongly."""

from __future__ import annotations

import codecs
import contextlib
import re
from typing import Final

from memory.documents.refusals import DocumentRefused

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_META: Final = re.compile(rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]{1,40})""", re.I)
# Browsers and mail take these names for their supersets, and so do those who write them.
_WIDER: Final = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252", "ascii": "utf-8", "shift_jis": "cp932"}
# Encodings of East Asia have a shape that other bytes do not have by chance. Which of the many encodings of one byte
# for each letter a text is in shows only in its words, and not for sure.
_TOLD: Final = frozenset(
    {"gb18030", "big5", "big5hkscs", "cp950", "cp932", "euc_jp", "euc_jis_2004", "euc_kr", "cp949"}
)
_FEWEST: Final = 24
_MOST_MESS: Final = 0.05
_GUESSED_FROM: Final = 200_000
_SAVE: Final = ("save it as UTF-8", "or name its encoding: Content-Type: text/plain; charset=…")


def decoded(data: bytes, charset: str | None = None, *, html: bool = False) -> tuple[str, str]:
    """The text, and the encoding that it was in.

    Args:
        charset: what the caller says; then nothing else is tried.
        html: a `meta` element may name the encoding.

    Raises:
        DocumentRefused: it is not text in the encoding that it says, or in none that can be told.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _checked(_in(data, name, "its byte order mark says"), name)
    if charset is None and html and (found := _META.search(data[:4096])) is not None:
        charset = found[1].decode()
        if charset.lower().startswith("utf-16"):
            charset = "utf-8"  # else the name itself could not have been read
    if charset is not None:
        try:
            name = codecs.lookup(charset).name
            with contextlib.suppress(UnicodeError):
                b" ".decode(name)  # of what Python calls a codec, such as zlib, not all are encodings of text
        except LookupError:
            raise DocumentRefused(
                "wrong_encoding", f"There is no encoding of the name {charset}.", suggestions=_SAVE
            ) from None
        name = _WIDER.get(name, name)
        return _checked(_in(data, name, "the document is said to be"), name)
    try:
        return _checked(data.decode(), "utf-8")
    except UnicodeDecodeError as error:
        name = _guessed(data, error.start)
    return _checked(_in(data, name, "it seems to be"), name)


def _in(data: bytes, name: str, why: str) -> str:
    try:
        text, _ = codecs.lookup(name).decode(data, "strict")
    except (UnicodeError, ValueError) as error:
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise DocumentRefused(
            "wrong_encoding", f"The text can't be read as {name}, which {why}: it breaks off{at}.", suggestions=_SAVE
        ) from None
    if not isinstance(text, str):  # such as base64, which Python also calls a codec
        raise DocumentRefused("wrong_encoding", f"{name} is no encoding of text.", suggestions=_SAVE)
    return text


def _guessed(data: bytes, broken_at: int) -> str:
    from charset_normalizer import from_bytes

    beginning = max(0, min(broken_at - _GUESSED_FROM // 2, len(data) - _GUESSED_FROM))
    sample = data if len(data) <= _GUESSED_FROM else data[beginning : beginning + _GUESSED_FROM]
    best = from_bytes(sample).best() if len(sample) >= _FEWEST else None
    name = codecs.lookup(best.encoding).name if best is not None else ""
    name = _WIDER.get(name, name)
    if best is None or best.chaos > _MOST_MESS or name not in _TOLD:
        raise DocumentRefused(
            "wrong_encoding",
            f"The text is not UTF-8 (it breaks off at byte {broken_at}), and its encoding can't be told.",
            suggestions=_SAVE,
        )
    return name


def _checked(text: str, name: str) -> tuple[str, str]:
    if "\x00" in text:
        raise DocumentRefused("binary", f"The document holds NUL characters (read as {name}): it is no text.")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), name
