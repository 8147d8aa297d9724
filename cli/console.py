"""Where the command line writes: results to standard output, progress to standard error."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

from kernel.errors import LonghaulError

# Everything that could move the cursor, recolour or rename a terminal, except tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def results() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def progress() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def harmless(text: str) -> str:
    """`text`, which a model or a tool may have written, with control characters shown as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def say(line: str) -> None:
    """One line of progress."""
    progress().print(Text(line, style="dim"))


def complain(error: LonghaulError) -> None:
    """Shows an error and what can be done about it."""
    console = progress()
    console.print(Text().append("error: ", style="bold red").append(harmless(error.message)))
    for suggestion in error.suggestions:
        console.print(Text(f"  · {harmless(suggestion)}"))
