"""How many tokens a text will be, roughly: cheap enough to ask for each message of each step.

No tokenizer is asked, for each model has its own. Seven ASCII characters count as two tokens, which is more than
English prose has (about 4.4 characters a token in the common vocabularies) and about what JSON, code and addresses
have. Three bytes of UTF-8 beyond ASCII count as one token: one for each Chinese, Japanese or Korean character, two
thirds for a Cyrillic or Greek letter. The estimate errs on the high side; long runs of digits or base64 may exceed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage

PER_MESSAGE: Final = 4
"""Tokens that a message takes beside its text."""

PER_IMAGE: Final = 1_100
"""Tokens of an image; what one of 1024 by 1024 pixels takes with the common models."""


def estimate(text: str) -> int:
    """Tokens of a text; 0 only for an empty one."""
    if text.isascii():
        return (len(text) * 2 + 6) // 7
    plain = len(text.encode("ascii", "ignore"))
    rest = len(text.encode("utf-8", "replace")) - plain
    return (plain * 2 + 6) // 7 + (rest + 2) // 3


def of_content(content: Any) -> int:
    """Tokens of a message's content: a text, or parts of text and images."""
    if isinstance(content, str):
        return estimate(content)
    if not isinstance(content, Sequence):
        return estimate(str(content))
    return sum(_of_part(part) for part in content)


def of_calls(calls: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the calls that a message asks for."""
    return sum(8 + estimate(str(call.get("name"))) + estimate(str(call.get("args"))) for call in calls)


def of_message(message: BaseMessage) -> int:
    """Tokens of a whole message."""
    tokens = PER_MESSAGE + of_content(message.content)
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        tokens += of_calls(message.tool_calls) + of_calls(message.invalid_tool_calls)
    return tokens


def clipped(text: str, tokens: int, note: str = "… [{count} characters left out] …") -> str:
    """`text` within so many tokens: its beginning and its end, and between them a note of what is missing."""
    if estimate(text) <= tokens:
        return text
    mark = note.format(count=len(text))
    room = tokens - estimate(mark) - 2
    if room <= 0:
        return beginning(text, tokens)
    head = beginning(text, room * 2 // 3)
    tail = beginning(text[::-1], room - estimate(head))[::-1]
    return head + note.format(count=len(text) - len(head) - len(tail)) + tail


def beginning(text: str, tokens: int) -> str:
    """As much of the beginning of `text` as so many tokens hold."""
    if tokens <= 0:
        return ""
    if estimate(text) <= tokens:
        return text
    low, high = 0, min(len(text), tokens * 7 // 2)
    while low < high:
        middle = (low + high + 1) // 2
        if estimate(text[:middle]) <= tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _of_part(part: Any) -> int:
    if isinstance(part, str):
        return estimate(part)
    if isinstance(part, Mapping):
        return estimate(part["text"]) if isinstance(part.get("text"), str) else PER_IMAGE
    return estimate(str(part))
