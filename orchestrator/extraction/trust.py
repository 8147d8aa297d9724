"""What a candidate rests on, and what may become of it.

The model that reads a turn also reads what tools returned, and may be talked into things by it. So it is not believed
when it says who said what. Each candidate has to quote a message of the turn, and its own words are compared with what
the user said and what tools said: words that only tools have said make it a tool's, whatever the model claims.

What always holds: a preference or a procedure rests on the user's words. What rests on a tool's is a fact that names
the tool, of little confidence, and is dropped where it reads like an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from memory.terms import PAIR, WORD, terms
from orchestrator.extraction.material import Material

Origin = Literal["user", "assistant", "tool"]

MOST: Final[dict[Origin, float]] = {"user": 0.95, "assistant": 0.6, "tool": 0.5}
"""The highest confidence of what rests on whose words."""

_LEAST_SUPPORT: Final = 0.34
_SHORTEST_QUOTE: Final = 3  # letters and digits

# Dates are no tool's: whoever writes the candidate was told to write them out.
_DATE: Final = re.compile(r"\d{4}-\d{2}(?:-\d{2})?(?:T[\d:.Z+-]*)?|\b\d{4}\b")

_NAME: Final = re.compile(r"\S*[A-Z0-9@]\S*")

_ORDERS: Final = re.compile(
    r"\b(?:ignor|disregard|overrid|forget|bypass)\w*\b.{0,40}\b(?:previous|prior|earlier|above|all|any|instruct|rule|polic)"
    r"|\b(?:system|developer) (?:prompt|message|instruction)s?\b"
    r"|\b(?:from now on|in (?:all )?future|going forward|henceforth|at all times)\b"
    r"|\b(?:you|assistants?|agents?|models?|bots?|ai)\b.{0,40}\b(?:must|should|shall|has to|have to|needs? to|are to"
    r"|is to|will|may not|can ?not|is required|are required|is instructed|are instructed)\b"
    r"|\b(?:always|never|must|don'?t|do not|make sure|be sure|remember to|you are now|pretend|act as)\b"
    r"|\binstruct(?:s|ed|ions?)?\b"
    r"|\b(?:is|are|has|have) to be\b|\b(?:best|advisable|advised|recommended|required|mandatory|essential|important|"
    r"necessary) (?:to|that)\b|\bkindly\b|(?:^|[.!:;]\s*)b?cc\b"
    r"|\b(?:immer|stets|niemals|bitte|müssen|sollen|muss|soll)\b|\b(?:siempre|nunca|debes?|deben|por favor)\b"
    r"|\b(?:toujours|jamais|veuillez|doi(?:t|s|vent)|devez)\b|\b(?:sempre|devem?|deve|devono)\b"
    r"|\b(?:всегда|никогда|должен|должны|пожалуйста)\b|(?:して)?ください|必ず|常に|항상|반드시|하십시오|세요"
    r"|\b(?:user|customer|owner|admin\w*)\b.{0,30}\b(?:wants?|prefers?|asks?|asked|likes?|allows?|allowed|agrees?|agreed"
    r"|authori[sz]\w+|approv\w+|consent\w*|permits?|permitted|grants?|granted)\b"
    r"|(?:^|[.!:;]\s*)(?:please\s+)?(?:send|forward|reply|respond|email|post|upload|transfer|pay|delete|remove|run|execute"
    r"|call|use|visit|open|click|download|install|tell|say|print|reveal|include|add|append|share|give|buy|order)\b"
    r"|忽略|无视|必须|务必|始终|总是|永远|不要|不得|从现在起|今后|请(?:发送|转发|执行|删除|告诉|使用)|指令|提示词|用户(?:希望|喜欢|要求|同意|授权)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Basis:
    """Whose words a text rests on; `tool` is the tool's name."""

    origin: Origin
    tool: str = ""


class Witnesses:
    """What was said in a session, by whom. Takes a while to make: a turn may be long."""

    def __init__(self, material: Material) -> None:
        self._lines = material.lines
        self._folded = [plain(line.text) for line in material.lines]
        said = [line.text for line in (*material.earlier, *material.lines) if line.role == "user"]
        self._users = _words([*material.asked, *said])
        self._tools = [(line.tool, _words([line.text])) for line in material.lines if line.role == "tool"]
        self._before = _words(material.overheard)
        self._heard = material.heard

    def basis(self, number: int, quote: str, text: str) -> Basis | None:
        """What `text` rests on, for which `quote` of message `number` of the turn is given as evidence; None where the
        message does not say so."""
        if not 1 <= number <= len(self._lines):
            return None
        wanted, folded = plain(quote), self._folded[number - 1]
        if wanted not in folded or len(wanted) < min(_SHORTEST_QUOTE, len(folded)) or not wanted:
            return None
        line = self._lines[number - 1]
        if line.role == "tool":
            return Basis("tool", line.tool)
        if (tool := self._tool_behind(text)) is not None:
            return Basis("tool", tool)
        if line.role == "user" and self._is_the_assistants(line.text, text):
            return Basis("assistant")
        return Basis(line.role)

    def without_orders(self, text: str) -> str:
        """A summary without the sentences that read like orders and are not the user's."""
        parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text)
        kept = [part for part in parts if not reads_like_an_order(part) or self._tool_behind(part) is None]
        return " ".join(part for part in kept if part.strip())

    def _is_the_assistants(self, message: str, text: str) -> bool:
        """Whether a text that is said to rest on a user's message has no word of it, and some of the assistant's."""
        said = _words([_DATE.sub(" ", text)])
        answers = _words(line.text for line in self._lines if line.role == "assistant")
        return not said & _words([message]) and bool(said & answers)

    def _tool_behind(self, text: str) -> str | None:
        """The tool whose words `text` has: words that the user has not said; or, of a text that has hardly any words of
        the user's, any tool of the session. None where it is the user's own, or no tool has said anything."""
        if not self._tools and not self._before and not self._heard:
            return None
        said = _words([_DATE.sub(" ", text)])
        foreign = said - self._users
        named = [tool for tool, words in self._tools if foreign & words]
        if not named and not foreign & self._before and not self._names_from_afar(text, foreign):
            if said and len(said - foreign) >= _LEAST_SUPPORT * len(said):
                return None
            named = [tool for tool, _ in self._tools]
        return ", ".join(dict.fromkeys(named))[:200] or "a tool"

    def _names_from_afar(self, text: str, foreign: set[str]) -> bool:
        """Whether a text has names, numbers or addresses that tools have said somewhere in their results, if not in the
        part of them that is read. Their other words are no evidence: a long page has nearly all of them."""
        names = foreign & _words(_NAME.findall(text[:1].lower() + text[1:]))
        return bool(names) and any(names & _words([heard]) for heard in self._heard)


def reads_like_an_order(text: str) -> bool:
    """Whether a text from a tool tells somebody what to do, or says what the user wants."""
    return _ORDERS.search(text) is not None


def _words(texts: Iterable[str]) -> set[str]:
    return {term.text for text in texts for term in terms(text) if term.grade in (WORD, PAIR)}


def plain(text: str) -> str:
    """A text's letters and digits alone, in lower case: models change spaces, quotes and dashes when they quote."""
    return "".join(character for character in text.casefold() if character.isalnum())
