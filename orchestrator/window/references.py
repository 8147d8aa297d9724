"""Large results of tools, once the model has seen them: a reference, with their beginning, takes their place."""

from __future__ import annotations

from typing import Final

from orchestrator.window.tokens import beginning, estimate

OPEN_RESULT: Final = "open_result"
"""The tool that reads what a reference stands for."""

_HEAD: Final = 250


def reference(tool: str, text: str, result_id: str | None, *, head: int = _HEAD) -> str:
    """What stands for a result: what it was, how to read it, and `head` tokens of its beginning. Without an id it can't
    be read any more."""
    how = "the rest was left out" if result_id is None else f'call {OPEN_RESULT} with id "{result_id}" to read it'
    line = f"[result of {tool[:64]}, {size(len(text.encode('utf-8', 'replace')))}: {how}]"
    return f"{line}\n{beginning(text, head)}…" if head > 0 else line


def size(bytes: int) -> str:
    """Such as `48 kB`."""
    return f"{bytes} bytes" if bytes < 1_000 else f"{(bytes + 500) // 1_000} kB"


def stub_tokens(tool: str, result_id: str | None) -> int:
    """Tokens of a reference without a beginning, at most."""
    return estimate(reference(tool, "", result_id, head=0)) + 4
