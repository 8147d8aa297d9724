"""What the rehearsal brain answers where a turn of a conversation is read for memories: a few patterns of sentences.

It is told from a conversation by the shape that the answer is to have. See `docs/guides/extraction.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cli.rehearsal.conversation import text_of

_END = r"([^.!?;。！？；\n]{1,200}?)(?=\s*(?:[.!?;。！？；\n]|,?\s+(?:and|but)\s+I\b|，|$))"
_I_AM = r"\bI(?:'m|’m| am)\s+"
# What a user says, the kind of memory, and how it is written down.
_SENTENCES: Sequence[tuple[re.Pattern[str], str, str]] = [
    (re.compile(r"\b(?:my name is|call me)\s+([\w'-]{1,60})", re.IGNORECASE), "fact", "The user's name is {}."),
    (re.compile(rf"{_I_AM}(allergic to\s+{_END})", re.IGNORECASE), "fact", "The user is {}."),
    (re.compile(rf"\bI\s+(?:live|am based)\s+in\s+{_END}", re.IGNORECASE), "fact", "The user lives in {}."),
    (re.compile(rf"\bI\s+work\s+(?:at|for)\s+{_END}", re.IGNORECASE), "fact", "The user works for {}."),
    (re.compile(rf"\bI\s+(?:would\s+)?prefer\s+{_END}", re.IGNORECASE), "preference", "The user prefers {}."),
    (re.compile(rf"\bI\s+(?:really\s+)?(?:like|love)\s+{_END}", re.IGNORECASE), "preference", "The user likes {}."),
    (re.compile(r"我(?:叫|的名字是)([\w一-鿿]{1,20})"), "fact", "用户的名字是{}。"),
    (re.compile(rf"我住在{_END}"), "fact", "用户住在{}。"),
    (re.compile(r"我(对[^。！？，\n]{1,60}过敏)"), "fact", "用户{}。"),
    (re.compile(rf"我(?:更)?喜欢{_END}"), "preference", "用户喜欢{}。"),
]
# Of these a user has one at a time.
_ONE_OF_A_KIND = re.compile(r"The user's name is|The user lives in|The user works for|用户的名字是|用户住在")
_MOST = 8


def answer_about_memories(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The JSON that is asked for; None where something else is."""
    wanted = _properties(body)
    if wanted == {"memories", "summary"}:
        return json.dumps({"memories": _found(_records(messages, "This turn:")), "summary": ""}, ensure_ascii=False)
    if wanted == {"decisions"}:
        return json.dumps({"decisions": [_decision(record) for record in _records(messages)]}, ensure_ascii=False)
    return None


def _found(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [
        {
            "kind": kind,
            "text": written.format(" ".join(match[1].split())),
            "scope": "user",
            "confidence": 0.9,
            "message": record.get("message", 1),
            "quote": match[0],
        }
        for record in records
        if record.get("role") == "user"
        for sentence, kind, written in _SENTENCES
        for match in sentence.finditer(str(record.get("text")))
    ]
    return found[:_MOST]


def _decision(record: Mapping[str, Any]) -> dict[str, Any]:
    text = str(record.get("text"))
    kind = _ONE_OF_A_KIND.match(text)
    for known in record.get("known") or ():
        if kind is not None and str(known.get("text")).startswith(kind[0]):
            return {"candidate": record.get("candidate"), "action": "supersede", "memory": known.get("memory")}
    return {"candidate": record.get("candidate"), "action": "add", "memory": None}


def _properties(body: Mapping[str, Any]) -> set[str]:
    shape: Any = body
    for name in ("response_format", "json_schema", "schema", "properties"):
        shape = shape.get(name) if isinstance(shape, Mapping) else None
    return set(shape) if isinstance(shape, Mapping) else set()


def _records(messages: Sequence[Mapping[str, Any]], after: str = "") -> list[dict[str, Any]]:
    """The JSON objects in the user's first message, one on each line, behind the last line that says `after`."""
    asked = next((text_of(message) for message in messages if message.get("role") == "user"), "")
    lines = asked.rpartition(f"\n{after}\n")[2].splitlines() if after else asked.splitlines()
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
