"""One document, taken apart in a process that is made for it and ends with it.

The first line of standard input is the task as JSON, what follows are the document's bytes. The answer goes to standard
output, a line of JSON each: first the document's facts or why it is refused, then passage after passage. Memory,
computing time and files are bounded by the operating system: whatever a hostile file does, it does to this process.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Mapping
from typing import Any

from memory.documents.blocks import Parsed
from memory.documents.passages import Passage, passages_of
from memory.documents.refusals import DocumentRefused

_EXTRA = ("install the extra: pip install 'longhaul[documents]'", "then restart the workers")


def main() -> None:
    """Reads the task, answers it."""
    task = json.loads(sys.stdin.buffer.readline())
    limit(task["memory_bytes"], task["cpu_seconds"])
    logging.disable()  # of libraries: what they have to say of a file is nothing for anybody's log
    sys.setrecursionlimit(3_000)
    try:
        answer(task, sys.stdin.buffer.read())
    except DocumentRefused as refused:
        _say({"refused": refused.code, "message": refused.message, "suggestions": list(refused.suggestions)})
    except MemoryError:
        _say({"refused": "too_costly", "message": "Reading the document needs too much memory.", "suggestions": []})
    except RecursionError:
        _say({"refused": "malformed", "message": "The document is nested too deeply.", "suggestions": []})
    sys.stdout.flush()


def limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Bounds this process from here on."""
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def answer(task: Mapping[str, Any], data: bytes) -> None:
    """Writes the answer to standard output."""
    parsed = read(task["format"], data, task["charset"])
    passages: list[Passage] = []
    characters = 0
    for passage in passages_of(parsed.blocks):
        characters += len(passage.text)
        if len(passages) == task["most_passages"] or characters > task["most_characters"]:
            raise DocumentRefused(
                "too_long",
                f"The document has more text than {task['most_passages']} passages or {task['most_characters']} "
                "characters.",
                suggestions=("split it into several documents",),
            )
        passages.append(passage)
    if not passages:
        raise DocumentRefused("empty", "The document holds no text.")
    _say({"facts": {**parsed.facts, "characters": characters}, "passages": len(passages)})
    for passage in passages:
        _say({"text": passage.text, "context": passage.context, "page": passage.page})


def read(kind: str, data: bytes, charset: str | None) -> Parsed:
    """The document's blocks, by the reader of its format.

    Raises:
        DocumentRefused: see the readers; also where the reader's library is not installed.
    """
    try:
        match kind:
            case "markdown":
                from memory.documents.readers.markdown import read_markdown

                return read_markdown(data, charset)
            case "html":
                from memory.documents.readers.html import read_html

                return read_html(data, charset)
            case "pdf":
                from memory.documents.readers.pdf import read_pdf

                return read_pdf(data)
            case "docx":
                from memory.documents.readers.docx import read_docx

                return read_docx(data)
            case "csv":
                from memory.documents.readers.csv import read_csv

                return read_csv(data, charset)
            case _:
                from memory.documents.readers.text import read_text

                return read_text(data, charset)
    except ModuleNotFoundError as error:
        raise DocumentRefused(
            "no_reader", f"This deployment can't read {kind}: {error.name} is not installed.", suggestions=_EXTRA
        ) from None


def _say(line: Mapping[str, Any]) -> None:
    # Halves of surrogate pairs, which broken files hold, are no text; as escapes they would come through.
    text = json.dumps(line, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    sys.stdout.buffer.write(text + b"\n")


if __name__ == "__main__":
    main()
