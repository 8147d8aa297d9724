"""Problems that the rehearsal brain can hand to Python: an arithmetic expression, or an amount at a rate.

"How many days for 12500 parcels at 340 parcels a day", "how long to go 300 km at 60 km/h": amount by rate. Either
number may stand in the question or in a fact.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cli.rehearsal.conversation import related

_NUMBER = r"(?<![A-Za-z0-9_.,])(\d[\d,]*(?:\.\d+)?)"
_HOURS = {"second": 1 / 3600, "minute": 1 / 60, "hour": 1.0, "day": 24.0, "week": 168.0}
_TIMES = {
    **dict.fromkeys(("s", "sec", "second", "秒"), "second"),
    **dict.fromkeys(("min", "minute", "分", "分钟"), "minute"),
    **dict.fromkeys(("h", "hr", "hour", "小时", "时"), "hour"),
    **dict.fromkeys(("d", "day", "天", "日"), "day"),
    **dict.fromkeys(("week", "周", "星期"), "week"),
}
_UNITS = {"kilometer": "km", "kilometre": "km", "公里": "km", "千米": "km", "英里": "mile"}
_UNIT = r"([A-Za-z]+|公里|千米|英里|[件个页包台])"
_TIME = r"(sec(?:ond)?s?|min(?:ute)?s?|h(?:ou)?rs?|hours?|h|s|days?|d|weeks?|秒|分钟|小时|天|周)(?![A-Za-z])"
_RATE = re.compile(rf"{_NUMBER}\s*{_UNIT}\s*(?:/|每|\s(?:a|an|per|each|every)\s)\s*{_TIME}", re.IGNORECASE)
_RATE_BEFORE = re.compile(rf"每(?:个)?{_TIME}\D{{0,6}}?(\d[\d,]*(?:\.\d+)?)\s*{_UNIT}")
_SPEED_BEFORE = re.compile(rf"时速\D{{0,4}}?(\d[\d,]*(?:\.\d+)?)\s*{_UNIT}")
_AMOUNT = re.compile(rf"{_NUMBER}\s*{_UNIT}", re.IGNORECASE)
_HOW_LONG = re.compile(
    rf"how (?:long|many {_TIME}|much time)|多久|多长时间|(?:多少|几)个?(秒|分钟|小时|天|周)", re.IGNORECASE
)

_NOT_ARITHMETIC = re.compile(r"https?://\S+|\b\d{4}-\d\d?-\d\d?\b")
_EXPRESSION = re.compile(r"[(\-]*\d[\d\s.,()+\-*/×÷^]*[\d)]")
_OPERATORS = str.maketrans({"×": "*", "÷": "/", "^": "**", ",": None, "\n": " "})
_ASKED = re.compile(r"compute|calculate|work out|what(?:'s| is)|how much|=|算|等于|多少", re.IGNORECASE)
_ALLOWED = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)


@dataclass(frozen=True, slots=True)
class Problem:
    """The value of `code` is the number; `words` say what it is, `formula` how it comes about."""

    code: str
    words: str
    formula: str
    unit: str
    facts: tuple[str, ...] = ()


def find_problem(question: str, facts: Sequence[str] = ()) -> Problem | None:
    """The problem in a question; None where there is none or a number is missing."""
    return _amount_at_a_rate(question, facts) or _expression(question)


def wants_a_number(question: str) -> bool:
    """Whether a question asks for a duration, so that a missing number is worth looking for."""
    return _HOW_LONG.search(question) is not None


def _expression(question: str) -> Problem | None:
    text = _NOT_ARITHMETIC.sub(" ", question)
    for match in _EXPRESSION.finditer(text):
        written = match.group().translate(_OPERATORS).strip()
        spaced = re.search(r"\s[+\-*/]+\s|\*", written) is not None
        if not (spaced or _ASKED.search(text)):
            continue  # 24-7, 1/2: more often names than sums
        try:
            tree = ast.parse(written, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if any(isinstance(n, ast.BinOp) for n in ast.walk(tree)) and all(
            isinstance(node, _ALLOWED) for node in ast.walk(tree)
        ):
            return Problem(_code(written), f"{match.group().strip()} comes to", written, "")
    return None


def _amount_at_a_rate(question: str, facts: Sequence[str]) -> Problem | None:
    asked = _HOW_LONG.search(question)
    if asked is None:
        return None
    texts = [question, *related(facts, question)]
    rates = [(text, rate) for text in texts if (rate := _rate(text))]
    for rate_text, (per_time, unit, time) in rates:
        for text in texts:
            amount = _amount(text, unit)
            if amount is None:
                continue
            wanted = _TIMES.get(_singular(asked.group(1) or asked.group(2) or ""), time)
            factor = _HOURS[time] / _HOURS[wanted]
            formula = f"{amount} / {per_time}" + ("" if factor == 1 else f" * {factor:g}")
            return Problem(
                _code(formula),
                f"{amount} {unit} at {per_time} {unit} per {time} take",
                formula,
                f"{wanted}s",
                tuple(dict.fromkeys(t for t in (rate_text, text) if t != question)),
            )
    return None


def _rate(text: str) -> tuple[str, str, str] | None:
    """A number, its unit, and the time that it is per."""
    if match := _RATE.search(text):
        number, unit, time = match.groups()
    elif match := _RATE_BEFORE.search(text):
        time, number, unit = match.groups()
    elif match := _SPEED_BEFORE.search(text):
        number, unit, time = *match.groups(), "h"
    else:
        return None
    return number.replace(",", ""), _unit(unit), _TIMES[_singular(time)]


def _amount(text: str, unit: str) -> str | None:
    for pattern in (_RATE, _RATE_BEFORE, _SPEED_BEFORE):
        text = pattern.sub(" ", text)
    for number, named in _AMOUNT.findall(text):
        if _unit(named) == unit:
            return str(number).replace(",", "")
    return None


def _unit(text: str) -> str:
    singular = _singular(text)
    unit = _UNITS.get(singular, singular)
    return unit if unit == "km" or not unit.isascii() else f"{unit}s"


def _singular(text: str) -> str:
    text = text.lower()
    return text[:-1] if len(text) > 1 and text.endswith("s") else text


def _code(formula: str) -> str:
    return f"round({formula}, 2)"
