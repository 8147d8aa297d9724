"""The brain of the demo: a handful of rules that use tools, sub-agents and memory the way a model would.

Deterministic. It says in every answer to a user what it is, so that nobody takes it for a model. Each tool is
called at most once per question, hence it always comes to an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.rehearsal.conversation import Conversation, Result, read_conversation, related
from cli.rehearsal.problems import Problem, find_problem, wants_a_number
from cli.rehearsal.reading import answer_about_memories
from cli.rehearsal.script import ChatRequest, Reply, ToolCall

WHO = (
    "This is Longhaul's rehearsal model, a few rules and no language model: no real model is configured "
    "(set OPENAI_API_KEY, and OPENAI_BASE_URL and LLM_MODEL where needed)."
)
WHO_IN_CHINESE = "这是 Longhaul 的排练模型：没有配置真实模型（请设置 OPENAI_API_KEY），回答由固定规则生成。"

_ABOUT = " It is about this question: "
_KNOWN = " Known: "

_REMEMBER = re.compile(r"(?:please\s+)?(?:remember\b(?:\s+that\b)?|记住)[\s:,：，]*(.+)", re.IGNORECASE | re.DOTALL)
_RECALL = re.compile(r"what do you (?:know|remember|recall)|do you remember|recall\b|记得", re.IGNORECASE)
_EXPERT = re.compile(
    r"research|expert|specialist|consult|look into|find out|colleague|研究|专家|请教|咨询", re.IGNORECASE
)
_CHECK = re.compile(r"confirm|check|verify|repeat|compute|calculate|核对|验证|计算", re.IGNORECASE)
_PACKING = re.compile(r"\bpack\b|\bbring\b|luggage|打包|带什么", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>\"'，。]+")
_CHINESE = re.compile(r"[一-鿿]")
_WIDE = "一-鿿　-〿＀-￯"  # Chinese characters and their punctuation
_TOKEN = re.compile(rf"\s*(?:[{_WIDE}]|[^\s{_WIDE}]+)|\s+")
_QUOTED = 400  # characters of a result that are repeated
_MOST_DELEGATIONS = 3

_PACK = (
    "Pack water and food for the whole way and one day more, a warm layer, a radio with spare batteries, "
    "a repair kit and a first-aid kit, and keep on top what is needed first."
)
_METHOD = (
    "I know no facts of my own; a sound start is to list what is known, name what is missing, and ask two sources."
)


@dataclass(frozen=True, slots=True)
class RehearsalBrain:
    """Answers by rules. The delays, in seconds, make it stream at a pace that a person can watch."""

    first_delay: float = 0.0
    token_delay: float = 0.0

    def __call__(self, request: ChatRequest) -> Reply:
        if (memories := answer_about_memories(request.body, request.messages)) is not None:
            return Reply([memories])
        talk = read_conversation(request.messages)
        tools = {} if request.body.get("tool_choice") == "none" else request.tools
        task = _Task.read(talk)
        calls = [call for call in _plan(task, talk, tools) if call.name not in talk.called]
        if calls:
            reasoning = split(f"I will use {_listed([_purpose(call) for call in calls])}.")
            return self._paced(reasoning=reasoning, tool_calls=calls)
        return self._paced(tokens=split(_answer(task, talk)))

    def _paced(
        self, tokens: Sequence[str] = (), reasoning: Sequence[str] = (), tool_calls: Sequence[ToolCall] = ()
    ) -> Reply:
        return Reply(tokens, reasoning, tool_calls, first_delay=self.first_delay, token_delay=self.token_delay)


@dataclass(frozen=True, slots=True)
class _Task:
    """The question, or what another agent delegated: `ask` about `question`, with what that one knew."""

    ask: str
    question: str
    facts: Sequence[str]
    delegated: bool

    @classmethod
    def read(cls, talk: Conversation) -> _Task:
        ask, about, rest = talk.question.partition(_ABOUT)
        question, _, known = rest.partition(_KNOWN)
        recalled = [
            line.lstrip("- ").partition(" (mem_")[0]
            for result in talk.of("recall")
            for line in result.text.splitlines()
        ]
        facts = [*talk.facts, *recalled, *([known] if known else [])]
        return cls(ask, question if about else ask, facts, bool(about))

    @property
    def problem(self) -> Problem | None:
        """What is to be computed: for another agent only where it asks for that."""
        if self.delegated and not _CHECK.search(self.ask):
            return None
        return find_problem(self.question, self.facts)


def _plan(task: _Task, talk: Conversation, tools: Mapping[str, Mapping[str, Any]]) -> list[ToolCall]:
    """Every call that helps, in one go where they do not need each other."""
    if "remember" in tools and (noted := _REMEMBER.match(task.ask)):
        return [ToolCall("remember", {"text": noted[1].strip()})]
    problem = task.problem
    missing = problem is None and wants_a_number(task.question) and not task.delegated
    if "recall" in tools and "recall" not in talk.called and (missing or _RECALL.search(task.ask)):
        return [ToolCall("recall", {"query": task.question})]
    calls = []
    if problem is not None and "python" in tools:
        calls.append(ToolCall("python", {"code": problem.code}))
    if "delegate" in tools and not task.delegated:
        calls += _delegations(task, problem, tools["delegate"])
    if "http_fetch" in tools and (url := _URL.search(task.ask)):
        calls.append(ToolCall("http_fetch", {"url": url[0].rstrip(".,;:!?)")}))
    return calls


def _delegations(task: _Task, problem: Problem | None, tool: Mapping[str, Any]) -> list[ToolCall]:
    properties = (tool.get("parameters") or {}).get("properties") or {}
    agents = [str(name) for name in (properties.get("agent") or {}).get("enum") or ()]
    text = task.ask.lower()
    named = [name for name in agents if re.sub(r"[_-]", " ", name.lower()) in re.sub(r"[_-]", " ", text)]
    if not named and agents and _EXPERT.search(text):
        named = agents[:1]
    calls = []
    for name in named[:_MOST_DELEGATIONS]:
        ask, question = _request_to(name, task.ask)
        known = problem.facts if problem is not None else related(task.facts, task.ask)[:3]
        brief = ask + _ABOUT + question + (_KNOWN + " ".join(known) if known else "")
        calls.append(ToolCall("delegate", {"agent": name, "task": brief}))
    return calls


def _request_to(agent: str, text: str) -> tuple[str, str]:
    """What the agent is to do, as a sentence, and the rest of the text without that request."""
    name = re.escape(agent).replace("_", "[ _-]").replace(r"\-", "[ _-]")
    asked = re.search(
        rf"(?:,?\s*(?:and|then)\s+)?\b(?:ask|have|let|tell|get)\s+(?:(?:the|our|a)\s+)?{name}\s+(?:to\s+)?([^.?!;]+)[.?!;]?",
        text,
        re.IGNORECASE,
    )
    if asked is None:
        return "Please help.", text
    clause = asked[1].strip()
    end = "?" if re.match(r"(?:what|how|who|which|where|when|why|whether)\b", clause, re.IGNORECASE) else "."
    rest = [part.strip(" ,") for part in (text[: asked.start()], text[asked.end() :])]
    return clause[0].upper() + clause[1:] + end, " ".join(_sentence(part) for part in rest if part) or text


def _answer(task: _Task, talk: Conversation) -> str:
    parts = [] if task.delegated else [WHO]
    if _CHINESE.search(talk.question) and not task.delegated:
        parts.append(WHO_IN_CHINESE)
    problem = task.problem
    facts = list(problem.facts) if problem is not None else []
    facts = facts or related(task.facts, task.question)[:3]
    if facts and not task.delegated and not talk.of("remember"):
        parts.append(f"From memory I recall: {' '.join(map(_sentence, facts))}")
    parts.extend(_woven(result, problem) for result in talk.results)
    if task.delegated and not talk.results:
        parts.append(_PACK if _PACKING.search(task.ask) else _METHOD)
    elif not talk.results:
        parts.append(_understood(talk))
    return " ".join(part for part in parts if part)


def _woven(result: Result, problem: Problem | None) -> str:
    said = _quoted(result.text)
    match result.tool:
        case "python" if problem is not None:
            number = re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", result.text)
            if not number or "error" in result.text.lower():
                return f"Python was to compute {problem.formula} but answered: {said}"
            value = f"{number[-1].removesuffix('.0')} {problem.unit}".rstrip()
            return f"{problem.words} {value}: Python computed {problem.formula}."
        case "delegate":
            return f"The {result.arguments.get('agent', 'other agent')} says: {said}"
        case "remember":
            return f"I have noted: {_sentence(str(result.arguments.get('text', '')))}"
        case "recall":
            return "" if problem is not None else f"Memory holds: {said}"
        case "http_fetch":
            return f"{result.arguments.get('url', 'The address')} answered: {said}"
        case name:
            return f"The tool {name} answered: {said}"


def _understood(talk: Conversation) -> str:
    if not talk.question:
        return "There is no question for me to answer."
    before = f" It follows {talk.earlier} earlier message(s) of yours." if talk.earlier else ""
    hint = " Ask me to compute something, to remember a fact, or to ask another agent."
    return f"I understood: “{_quoted(talk.question)}”.{before}{hint}"


def _purpose(call: ToolCall) -> str:
    arguments = call.arguments if isinstance(call.arguments, Mapping) else {}
    return f"the agent {arguments.get('agent')}" if call.name == "delegate" else f"the tool {call.name}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _quoted(text: str) -> str:
    text = " ".join(text.replace(WHO, "").split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."


def split(text: str) -> list[str]:
    """Tokens whose join is `text`: words with the space before them, single Chinese characters."""
    return _TOKEN.findall(text)
