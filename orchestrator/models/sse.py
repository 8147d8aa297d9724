"""Server-sent events from raw bytes, as model endpoints send them.

Follows the parsing rules of the HTML standard
(https://html.spec.whatwg.org/multipage/server-sent-events.html), reads only `data`, and is lenient where
endpoints are sloppy: a data line that is a whole JSON object counts as an event without waiting for the
blank line, and a bare JSON object on a line counts as data. A line that is nothing of the kind is refused
rather than skipped, because skipping could lose a piece of the answer unseen.

Works on bytes and splits at line ends only, so a read may end anywhere, also inside a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.errors import ModelGarbled

MAX_LINE = 1_048_576  # bytes; also bounds an event of several lines
DONE = b"[DONE]"

_SUGGESTIONS = (
    "Check that the address is that of an OpenAI-compatible API (OPENAI_BASE_URL, or base_url of the model).",
)
_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb"[A-Za-z][A-Za-z0-9_-]*(?::|$)")


class EventReader:
    """Turns reads of any size into the data of complete events. Holds at most about `MAX_LINE` bytes."""

    __slots__ = ("_after_cr", "_held", "_lines", "_size", "_started", "saw_event")

    def __init__(self) -> None:
        self._held: list[bytes] = []  # pieces of a line whose end has not come yet
        self._lines: list[bytes] = []  # data lines of an event whose end has not come yet
        self._size = 0  # bytes in both
        self._after_cr = False
        self._started = False
        self.saw_event = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of the events that `data` completes, in order. Must be read to its end.

        Raises:
            ModelGarbled: after the events before it: a line that is not part of an event stream, or has no end
                in sight.
        """
        if b"\r" in data or self._after_cr:
            data = self._unify_line_ends(data)
        if b"\n" not in data:
            self._hold(self._held, data)
            return
        if self._held:
            data = b"".join((*self._held, data))
            self._held.clear()
            self._size = sum(map(len, self._lines))
        lines = data.split(b"\n")
        rest = lines.pop()
        yield from self._events(lines)
        if rest:
            self._hold(self._held, rest)

    def end(self) -> Iterator[bytes]:
        """What the end of the stream completes: endpoints often leave out the last line end."""
        lines = [b"".join(self._held), b""]
        self._held.clear()
        yield from self._events(lines)

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        pending = self._lines
        if not self._started and lines:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
            elif not line:
                if pending:
                    self.saw_event = True
                    yield b"\n".join(pending)
                    pending.clear()
                    self._size = 0
                continue
            elif line.startswith(b"{"):
                data = line.strip()
            elif line.startswith(b":") or _FIELD.match(line):
                continue
            else:
                raise ModelGarbled(
                    "The model endpoint answered with something that is neither an event stream nor JSON.",
                    suggestions=_SUGGESTIONS,
                )
            if not pending and (data == DONE or (data.startswith(b"{") and data.endswith(b"}"))):
                self.saw_event = True
                yield data
            elif data:
                self._hold(pending, data)

    def _hold(self, where: list[bytes], data: bytes) -> None:
        where.append(data)
        self._size += len(data)
        if self._size > MAX_LINE:
            raise ModelGarbled(
                f"The model endpoint sent an event of more than {MAX_LINE} bytes.", suggestions=_SUGGESTIONS
            )

    def _unify_line_ends(self, data: bytes) -> bytes:
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" not in data:
            return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
