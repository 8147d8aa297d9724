"""The chat completions protocol as bytes: a script's frames as server-sent events, or one whole completion.

A frame per token is what real endpoints send and what a client has to cope with; the constant parts of the frames
are encoded once per answer, which keeps this far faster than any client that reads it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import orjson

from cli.rehearsal.script import ChatRequest, Reply, ToolCall

DONE = b"data: [DONE]\n\n"

_numbers = itertools.count(1)


def read_request(body: Any) -> ChatRequest:
    """The request in a decoded JSON body.

    Raises:
        ValueError: says which field is missing or wrong.
    """
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("messages must be a list of at least one object")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ValueError("model must be a string")
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise ValueError("tools must be a list")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    named = {f["name"]: f for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}
    return ChatRequest(model, messages, named, bool(body.get("stream")), body)


class Frames:
    """The encoded answer to one request."""

    def __init__(self, request: ChatRequest, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._id = f"chatcmpl-rehearsal{next(_numbers)}"
        self._created = int(time.time())

    def head(self) -> bytes:
        """The first frame: the role alone."""
        return self._frame({"role": "assistant", "content": ""})

    def script(self) -> Iterator[bytes]:
        """One frame for each piece of reasoning, token and tool call."""
        prefix, suffix = self._around("reasoning_content")
        for text in self._reply.reasoning:
            yield prefix + orjson.dumps(text) + suffix
        prefix, suffix = self._around("content")
        for text in self._reply.tokens:
            yield prefix + orjson.dumps(text) + suffix
        for index, call in enumerate(self._reply.tool_calls):
            yield self._call(index, call)

    def tail(self) -> bytes:
        """The finish reason, the usage if it was asked for, and the end mark."""
        end = self._frame({}, self._finish_reason())
        options = self._request.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            end += b"data: " + orjson.dumps({**self._common(), "choices": [], "usage": self._usage()}) + b"\n\n"
        return end + DONE

    def completion(self) -> bytes:
        """The whole answer as one JSON document."""
        reply = self._reply
        message: dict[str, Any] = {"role": "assistant", "content": "".join(reply.tokens) or None}
        if reply.reasoning:
            message["reasoning_content"] = "".join(reply.reasoning)
        if reply.tool_calls:
            message["tool_calls"] = [
                {"id": self._call_id(i), "type": "function", "function": {"name": c.name, "arguments": _arguments(c)}}
                for i, c in enumerate(reply.tool_calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason()}
        common = {**self._common(), "object": "chat.completion"}
        return orjson.dumps({**common, "choices": [choice], "usage": self._usage()})

    def _common(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._request.model,
        }

    def _frame(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return b"data: " + orjson.dumps({**self._common(), "choices": [choice]}) + b"\n\n"

    def _around(self, field: str) -> tuple[bytes, bytes]:
        """What stands before and after the text in a frame whose delta is one field of text."""
        prefix, _, suffix = self._frame({field: "\0"}).partition(b'"\\u0000"')
        return prefix, suffix

    def _call(self, index: int, call: ToolCall) -> bytes:
        """Two events, as real endpoints spread a call over several: its name, then its arguments in halves."""
        arguments = _arguments(call)
        half = len(arguments) // 2
        function = {"name": call.name, "arguments": ""}
        named = {"index": index, "id": self._call_id(index), "type": "function", "function": function}
        return (
            self._frame({"tool_calls": [named]})
            + self._frame({"tool_calls": [{"index": index, "function": {"arguments": arguments[:half]}}]})
            + self._frame({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
        )

    def _call_id(self, index: int) -> str:
        return f"call_{self._id.removeprefix('chatcmpl-')}_{index}"

    def _finish_reason(self) -> str:
        return self._reply.finish_reason or ("tool_calls" if self._reply.tool_calls else "stop")

    def _usage(self) -> dict[str, int]:
        """A token of input is taken as four characters of the messages."""
        read, written = self._reply.usage or (
            sum(len(str(m.get("content") or "")) for m in self._request.messages) // 4 + 1,
            len(self._reply.reasoning) + len(self._reply.tokens) + len(self._reply.tool_calls),
        )
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _arguments(call: ToolCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else orjson.dumps(call.arguments).decode()
