"""The transcript of one agent in one run: the messages of this turn, by position.

It lives in memory and is rebuilt from the message records on resume. Positions are given out by THINK, so that
ACT and DELEGATE can fill in results side by side, and a step that is done again overwrites its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from kernel.content import text_of
from kernel.ids import new_id
from kernel.leases import StoredMessage
from kernel.runlog import NewMessage, RunLog


class Transcript:
    """Messages that are told to the model and recorded in the run's log."""

    def __init__(self, log: RunLog, path: str) -> None:
        self._log = log
        self._path = path
        self._messages: dict[int, AnyMessage] = {}
        self._records: dict[int, str] = {}

    def load(self, stored: Iterable[StoredMessage]) -> None:
        """Takes in what is recorded for this path already."""
        for message in stored:
            if message.path == self._path:
                self._messages[message.position] = to_model(
                    message.role, message.content, message.tool_calls, message.tool_call_id
                )
                self._records[message.position] = message.id

    def __len__(self) -> int:
        return len(self._messages)

    def upto(self, position: int) -> list[AnyMessage]:
        """The messages before `position`, in order."""
        return [self._messages[at] for at in sorted(self._messages) if at < position]

    def placed(self, position: int) -> list[tuple[int, str | None, AnyMessage]]:
        """The same with the position of each and, of what tools returned, the id of its record."""
        return [(at, self._records.get(at), self._messages[at]) for at in sorted(self._messages) if at < position]

    def add_input(self, text: str) -> None:
        """The first message of a sub-agent: its task."""
        self._add(0, HumanMessage(text), text)

    def add_assistant(self, position: int, message: AIMessage, message_id: str | None = None) -> None:
        """What the model said."""
        calls: list[dict[str, Any]] = [
            *({"id": call["id"], "name": call["name"], "args": call["args"]} for call in message.tool_calls),
            *({"id": call["id"], "name": call["name"], "args": call["args"]} for call in message.invalid_tool_calls),
        ]
        self._add(position, message, message.text, message_id=message_id, tool_calls=calls or None)

    def add_result(self, position: int, call_id: str, text: str) -> NewMessage:
        """What a tool call or a delegation came to. The record of it goes to Postgres with the call's outcome, so it
        is the caller's to write."""
        self._messages[position] = ToolMessage(text, tool_call_id=call_id)
        record = self._records[position] = new_id("msg")
        return NewMessage(record, self._path, position, "tool", text, tool_call_id=call_id)

    def _add(
        self,
        position: int,
        message: AnyMessage,
        content: str,
        *,
        message_id: str | None = None,
        tool_calls: list[dict[str, Any]] | None = None,
    ) -> None:
        self._messages[position] = message
        role = "user" if message.type == "human" else "assistant"
        self._log.record_message(
            NewMessage(message_id or new_id("msg"), self._path, position, role, content, tool_calls)
        )


def to_model(
    role: str, content: Any, tool_calls: Sequence[dict[str, Any]] | None, tool_call_id: str | None
) -> AnyMessage:
    """A message record as one of langchain's. Only users send images."""
    text = content if isinstance(content, str) else text_of(content)
    match role:
        case "user":
            return HumanMessage(content=_parts(content) if isinstance(content, list) else text)
        case "system":
            return SystemMessage(text)
        case "tool":
            return ToolMessage(text, tool_call_id=tool_call_id or "")
        case _:
            calls = tool_calls or ()
            return AIMessage(
                text,
                tool_calls=[call for call in calls if isinstance(call["args"], dict)],
                invalid_tool_calls=[
                    {**call, "error": None, "type": "invalid_tool_call"}
                    for call in calls
                    if not isinstance(call["args"], dict)
                ],
            )


def _parts(content: list[Any]) -> list[str | dict[Any, Any]]:
    """Parts of a message as OpenAI's protocol has them."""
    return [
        {"type": "image_url", "image_url": {"url": part["url"]}} if part.get("type") == "image" else part
        for part in content
    ]
