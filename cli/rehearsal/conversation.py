"""What the rehearsal brain sees of a conversation: the question, the facts it was told, the results so far."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_RECALLED = re.compile(r"\W*recalled memory\b.*:\s*", re.IGNORECASE)
_WORD = re.compile(r"[一-鿿]|[^\W_]{3,}")
_ANSWER_FIELDS = ("answer", "result", "value", "output", "stdout", "text", "message")


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool call of this turn came to, as plain text."""

    tool: str
    arguments: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """`question` is the last text of the user, `results` what was called since; `facts` were recalled before."""

    question: str
    facts: Sequence[str]
    results: Sequence[Result]
    called: frozenset[str]
    earlier: int  # texts of the user before the question

    def of(self, tool: str) -> list[Result]:
        """The results of one tool."""
        return [result for result in self.results if result.tool == tool]


def read_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Takes messages of any shape; what is not understood is passed over."""
    asked = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    start = asked[-1] if asked else len(messages)
    calls: dict[str, tuple[str, Mapping[str, Any]]] = {}
    results: list[Result] = []
    for message in messages[start + 1 :]:
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            calls[str(call.get("id"))] = (str(function.get("name")), _arguments(function.get("arguments")))
        if message.get("role") == "tool":
            name, arguments = calls.get(str(message.get("tool_call_id")), ("", {}))
            results.append(Result(name, arguments, _plain(text_of(message))))
    system = "\n".join(text_of(m) for m in messages if m.get("role") in ("system", "developer"))
    return Conversation(
        question=text_of(messages[start]).strip() if asked else "",
        facts=_facts(system),
        results=results,
        called=frozenset(name for name, _ in calls.values()),
        earlier=max(0, len(asked) - 1),
    )


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def words(text: str) -> set[str]:
    """The words that two texts can have in common; plurals count as singulars."""
    return {word.rstrip("s") for word in _WORD.findall(text.lower())} - {"the", "and", "for", "how", "many", "what"}


def related(facts: Sequence[str], text: str) -> list[str]:
    """The facts that share words with `text`, the closest first."""
    wanted = words(text)
    shared = {fact: len(words(fact) & wanted) for fact in facts}
    return sorted((fact for fact in shared if shared[fact]), key=lambda fact: -shared[fact])


def _facts(system: str) -> list[str]:
    facts: list[str] = []
    recalled = False
    for line in system.splitlines():
        if _RECALLED.fullmatch(line):
            recalled = True
        elif recalled and line.startswith("- "):
            facts.append(line[2:].strip())
        elif line.strip():
            recalled = False
    return facts


def _arguments(text: object) -> Mapping[str, Any]:
    try:
        arguments = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _plain(text: str) -> str:
    """The part of a JSON result that says the answer; other texts as they are."""
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()
    if isinstance(value, dict):
        value = next((value[name] for name in _ANSWER_FIELDS if value.get(name) not in (None, "")), value)
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
