"""Server-sent events, read from bytes as they come (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One dispatched event; `id` is the last id the stream has named."""

    id: str
    event: str
    data: str


class FrameParser:
    """Feed it bytes cut anywhere. Line ends may be LF, CRLF or CR; comments are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The events that are complete with this chunk."""
        text = self._rest + chunk
        # A CR at the very end may be the first half of CRLF: keep it for the next chunk.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        for line in lines:
            if line:
                self._field(line.decode("utf-8", "replace"))
            elif self._data:
                yield Frame(self._id, self._event or "message", "\n".join(self._data))
                self._event, self._data = "", []
            else:
                self._event = ""

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
