"""What is said of a document that can't be taken: a code for programs, the reason, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from kernel.errors import CallerError


class DocumentRefused(CallerError):
    """The document is not one that can be read; the same bytes will not do better.

    `code` is one of: empty, too_large, too_long, unsupported_type, wrong_type, binary, wrong_encoding, encrypted,
    bomb, too_costly, malformed, no_text, no_reader.
    """

    status = 422

    def __init__(self, code: str, message: str, *, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.code = code
        if code in ("unsupported_type", "wrong_type", "binary"):
            self.status = 415
        elif code == "too_large":
            self.status = 413
