"""Events: the entries of a session's log, and the one way they are written as SSE.

A frame is made of the stored row alone, so a live stream, a replay and a resume are equal byte for byte.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import orjson

from kernel.errors import Unstorable

EventType: TypeAlias = Literal[
    "run_queued",
    "run_started",
    "state_entered",
    "tool_thinking",
    "tool_start",
    "tool_result",
    "delegate_start",
    "delegate_result",
    "memory_recalled",
    "context_compacted",
    "message_chunk",
    "message",
    "message_discarded",
    "approval_required",
    "approval_resolved",
    "run_waiting",
    "run_resumed",
    "usage",
    "error",
    "done",
]

EVENT_TYPES: Final[tuple[str, ...]] = get_args(EventType)
STREAM_TYPES: Final = (*EVENT_TYPES, "reset")
"""What a stream may hold: beside the entries of the log, what stands in for those that are no longer kept."""

RunStatus: TypeAlias = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "expired"]
RUN_STATUSES: Final[tuple[str, ...]] = get_args(RunStatus)
FINAL_STATUSES: Final[frozenset[str]] = frozenset({"succeeded", "failed", "cancelled", "expired"})

MAX_SEQ: Final = 2**63 - 1


def encode_json(value: Any) -> str:
    """`value` as JSON that Postgres can keep: no NUL, no lone surrogates.

    Both can come out of a model or a tool; they are shown as U+FFFD.

    Raises:
        Unstorable: it is nested too deep, or holds what JSON has no word for.
    """
    try:
        encoded = orjson.dumps(value).decode()
    except TypeError:  # a lone surrogate, a number beyond 64 bits, or deep nesting
        try:
            return json.dumps(printable(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise Unstorable(f"a value can't be kept as JSON: {error}") from None
    if "\\u0000" in encoded:
        return orjson.dumps(printable(value)).decode()
    return encoded


def printable(value: Any) -> Any:
    """`value` with every NUL and lone surrogate in its strings replaced by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def render_time(at: datetime) -> str:
    """UTC with microseconds, such as `2026-01-31T12:00:00.000001Z`."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def render_frame(seq: int, type: str, session_id: str, run_id: str, at: str, data: str) -> bytes:
    """One SSE frame. `at` is a rendered time, `data` the event's own fields as a JSON object."""
    rest = "," + data[1:] if len(data) > 2 else "}"
    return (
        f"id: {seq}\nevent: {type}\n"
        f'data: {{"seq":{seq},"session_id":"{session_id}","run_id":"{run_id}","at":"{at}"{rest}\n\n'
    ).encode()
