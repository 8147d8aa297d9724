"""Shows a run in the terminal as it happens: one line an event, the answer as it streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from cli.client import Event
from cli.console import harmless
from cli.errors import RunFailed

_MARGIN = 20  # columns before the text of an event
_WIDTH = 400  # characters of a tool's arguments or result that are shown


@dataclass(slots=True)
class Outcome:
    """What is known of a run after its last event. Times are seconds from the start of following."""

    status: str = ""
    finish_reason: str = ""
    run_id: str = ""
    session_id: str = ""
    answer: str = ""
    tools_ok: int = 0
    error: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    tool_ms: int = 0
    first_token: float | None = None
    answer_began: float | None = None
    total: float = 0.0

    def timing(self) -> str:
        """Where the time went, as one line in milliseconds."""
        parts = {
            "first token": self.first_token,
            "answer begun": self.answer_began,
            "done": self.total,
        }
        known = [f"{name} after {seconds * 1000:.0f} ms" for name, seconds in parts.items() if seconds is not None]
        return ", ".join([*known, f"tools took {self.tool_ms} ms"])

    def raise_for_status(self) -> None:
        """Raises RunFailed unless the run succeeded."""
        if self.status == "succeeded":
            return
        message = str(self.error.get("message") or f"finish reason: {self.finish_reason or 'none'}")
        code = f" ({self.error['code']})" if self.error.get("code") else ""
        suggestions = [str(item) for item in self.error.get("suggestions") or ()]
        raise RunFailed(f"The run {self.status or 'did not end'}{code}: {message}", suggestions=suggestions)


class Transcript:
    """Writes events to a console and keeps the outcome. `as_json` writes each event as one JSON line instead."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self.outcome = Outcome()
        self._console = console
        self._as_json = as_json
        self._began = time.monotonic()
        self._streaming: tuple[str, str] | None = None  # what the open line holds: event type, and whose
        self._shown: dict[str, str] = {}  # the text of messages as far as it was streamed

    async def follow(self, events: AsyncIterator[Event]) -> Outcome:
        """Shows events to the last one."""
        try:
            async for event in events:
                self.show(event)
        finally:
            self._end_line()
            self.outcome.total = time.monotonic() - self._began
        return self.outcome

    def show(self, event: Event) -> None:
        self._keep(event)
        if self._as_json:
            line = {"event": event.type, **event.fields}
            self._console.out(orjson.dumps(line).decode(), highlight=False)
        elif event.type in ("message_chunk", "tool_thinking"):
            self._stream(event)
        else:
            text = self._line(event)
            if text is not None:
                self._end_line()
                self._console.print(self._head(event, text))

    def _keep(self, event: Event) -> None:
        outcome, fields = self.outcome, event.fields
        outcome.seen[event.type] = outcome.seen.get(event.type, 0) + 1
        outcome.run_id = str(fields.get("run_id", ""))
        outcome.session_id = str(fields.get("session_id", ""))
        now = time.monotonic() - self._began
        if event.type in ("message_chunk", "tool_thinking") and outcome.first_token is None:
            outcome.first_token = now
        if event.type == "message_chunk" and not fields.get("path") and outcome.answer_began is None:
            outcome.answer_began = now
        elif event.type == "message" and not fields.get("path") and fields.get("role") == "assistant":
            outcome.answer = _plain(fields.get("content"))
        elif event.type == "tool_result":
            outcome.tools_ok += fields.get("status") == "ok"
            outcome.tool_ms += int(fields.get("duration_ms") or 0)
        elif event.type == "reset":
            _keep_snapshot(outcome, fields.get("snapshot") or {})
        elif event.type == "error":
            outcome.error = dict(fields)
        elif event.type == "done":
            outcome.status = str(fields.get("status", ""))
            outcome.finish_reason = str(fields.get("finish_reason", ""))
            outcome.usage = dict(fields.get("usage") or {})

    def _stream(self, event: Event) -> None:
        """Text that comes in pieces: those that belong together share a line."""
        message = str(event.fields.get("message_id", ""))
        source = (event.type, message or str(event.fields.get("path") or ""))
        if self._streaming != source:
            self._end_line()
            self._console.print(self._head(event, Text("")), end="")
            self._streaming = source
        piece = str(event.fields.get("text", ""))
        self._shown[message] = self._shown.get(message, "") + piece
        style = "italic" if event.type == "tool_thinking" else ""
        self._console.print(Text(harmless(piece), style=style), end="")

    def _end_line(self) -> None:
        if self._streaming is not None:
            self._console.print()
            self._streaming = None

    def _head(self, event: Event, text: Text) -> Text:
        seconds = time.monotonic() - self._began
        # How deep a sub-agent sits: its path has one part for each level. Who delegates to it sits one above.
        path = str(event.fields.get("path") or "")
        depth = len([part for part in path.split("/") if part]) - event.type.startswith("delegate_")
        name, style = _LABELS.get(event.type, (event.type, ""))
        head = Text().append(f"{seconds:7.3f}s ", style="dim").append("  " * max(depth, 0))
        return head.append(f"{name:<10}", style=style).append(" ").append_text(text)

    def _line(self, event: Event) -> Text | None:
        """What is worth saying of an event, or None to pass over it."""
        get = event.fields.get
        match event.type:
            case "run_queued":
                return Text(str(get("run_id", "")), style="dim")
            case "run_started" | "run_resumed":
                worker = f" on {get('worker')}" if get("worker") else ""
                return Text(harmless(f"attempt {get('attempt')}{worker}"), style="dim")
            case "state_entered":
                return Text(harmless(str(get("state", ""))), style="bold")
            case "memory_recalled":
                items = [f"· {_short(_item_text(item))}" for item in get("items") or ()]
                return Text(f"\n{'':{_MARGIN}}".join(items))
            case "context_compacted":
                shorter = f"{get('tokens_before')} to {get('tokens_after')} tokens"
                return Text(harmless(f"{get('messages')} messages summed up, {shorter}"), style="dim")
            case "tool_start":
                return _named(get("name"), get("arguments"))
            case "tool_result":
                took = f" in {get('duration_ms')} ms" if get("duration_ms") is not None else ""
                status = str(get("status", ""))
                style = "green" if status == "ok" else "red"
                return Text().append(f"{status}{took}: ", style=style).append(_short(get("result")))
            case "delegate_start":
                return _named(get("agent"), get("task") or get("arguments") or get("input"))
            case "delegate_result":
                return _named(get("agent"), get("result"))
            case "message":
                text = _plain(get("content"))
                if self._shown.pop(str(get("message_id")), None) == text or get("role") != "assistant":
                    return None
                return Text(harmless(text))  # none of it was streamed, or not all of it
            case "message_discarded":
                return Text("the partial answer above is void", style="dim")
            case "approval_required":
                return Text(_short(get("prompt")))
            case "approval_resolved":
                return Text(harmless(f"{get('decision')} by {get('by')}"))
            case "run_waiting":
                return Text(_short(get("reason")))
            case "reset":
                return Text(_past(get("snapshot") or {}), style="dim")
            case "usage":
                return Text(f"{get('input_tokens')} tokens in, {get('output_tokens')} out", style="dim")
            case "error":
                return Text(harmless(f"{get('code')}: {get('message')}"))
            case "done":
                style = "bold green" if get("status") == "succeeded" else "bold red"
                return Text(harmless(str(get("status"))), style=style)
        return Text(_short(dict(event.fields)))


_LABELS = {
    "run_queued": ("queued", "dim"),
    "run_started": ("started", "dim"),
    "run_resumed": ("resumed", "yellow"),
    "run_waiting": ("waiting", "yellow"),
    "state_entered": ("state", "cyan"),
    "memory_recalled": ("recalled", "magenta"),
    "context_compacted": ("compacted", "dim"),
    "tool_thinking": ("thinking", "dim"),
    "tool_start": ("tool", "yellow"),
    "tool_result": ("result", "yellow"),
    "delegate_start": ("delegate", "blue"),
    "delegate_result": ("returned", "blue"),
    "message_chunk": ("answer", "green"),
    "message": ("answer", "green"),
    "message_discarded": ("discarded", "yellow"),
    "approval_required": ("approval", "yellow"),
    "approval_resolved": ("approval", "yellow"),
    "reset": ("reset", "yellow"),
    "usage": ("usage", "dim"),
    "error": ("error", "bold red"),
    "done": ("done", "bold"),
}


def _keep_snapshot(outcome: Outcome, run: Mapping[str, Any]) -> None:
    """What is known of a run whose events are gone."""
    if run.get("finished_at"):
        outcome.status = str(run.get("status", ""))
        outcome.finish_reason = str(run.get("finish_reason") or "")
        outcome.answer = str(run.get("answer") or "")
        outcome.usage = dict(run.get("usage") or {})
        outcome.error = dict(run.get("error") or {})


def _past(snapshot: Mapping[str, Any]) -> str:
    """What a `reset` tells instead of the events that are gone: of a run its status and answer, else how much was
    said."""
    if "messages" in snapshot:
        more = "or more " if snapshot.get("truncated") else ""
        return f"earlier events are no longer kept; {len(snapshot['messages'])} {more}messages came before"
    answer = f": {_short(snapshot['answer'])}" if snapshot.get("answer") else ""
    return harmless(f"earlier events are no longer kept; the run {snapshot.get('status')}{answer}")


def _named(name: object, value: object) -> Text:
    return Text().append(harmless(str(name)), style="bold").append(f" {_short(value)}")


def _short(value: object) -> str:
    """A value on one line, cut to a readable length."""
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    text = harmless(" ⏎ ".join(text.strip().splitlines()))
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}… ({len(text)} characters)"


def _item_text(item: object) -> object:
    """The text of a recalled item, which is text or an object that holds it."""
    if isinstance(item, dict):
        return item.get("text") or item.get("content") or item
    return item


def _plain(content: object) -> str:
    """The text of a message, whose content is text or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""
