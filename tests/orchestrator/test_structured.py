"""Structured answers: what counts as one, and what a model and a caller are told of one that does not fit."""

from __future__ import annotations

import time

import pytest

from orchestrator.errors import BadResponseSchema
from orchestrator.structured import AnswerSchema, Misfit, correction

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize("text", ['{"n": 1}', ' \n{"n": 1, "more": "ü"}\n', '{"n": 1, "code": "```\\nx\\n```"}'])
def test_json_is_taken_as_it_stands(text: str) -> None:
    assert AnswerSchema(SCHEMA).read(text) == text


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"n": 1}\n```',
        '```\n{"n": 1}\n```',
        'Sure:\n```JSON\r\n{"n": 1}\n```\nDone.',
        'First ```\n{"n": 0}\n``` and then ```json\n{"n": 1}\n```',
    ],
)
def test_a_code_fence_is_taken_off_and_the_last_one_counts(text: str) -> None:
    read = AnswerSchema(SCHEMA).read(text)
    assert read == '{"n": 1}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("The answer is 1.", "not valid JSON"),
        ('{"n": NaN}', "not valid JSON"),
        ('{"n": 1', "not valid JSON"),
        ('{"n": "1"}', "n: "),
        ("{}", "required"),
        ("```json\nnope\n```", "not valid JSON"),
        ('{"n": 1, "s": "\\u0000"}', "NUL"),
        ('{"n": 1, "s": "\\ud800"}', "not valid JSON"),
        ('{"n": 1, "deep": ' + "[" * 100 + "]" * 100 + "}", "too deep"),
        ("[" * 100_000, "not valid JSON"),
        ('"' + "x" * 1_000_000 + '"', "longer than"),
    ],
)
def test_what_does_not_fit_is_said_to_the_model(text: str, problem: str) -> None:
    read = AnswerSchema(SCHEMA).read(text)
    assert isinstance(read, Misfit)
    said, told = correction(read.draft())
    assert (said.type, told.type) == ("ai", "human")
    assert said.text
    assert problem in told.text


@pytest.mark.parametrize(
    "text", ["```\n" + " " * 900_000, "```a\n" * 150_000, "`" * 900_000, "```\n" + "\n`` " * 200_000]
)
def test_no_answer_takes_long_to_read(text: str) -> None:
    started = time.perf_counter()
    assert isinstance(AnswerSchema(SCHEMA).read(text), Misfit)
    assert time.perf_counter() - started < 2


def test_any_json_can_be_asked_for() -> None:
    assert AnswerSchema({}).read("null") == "null"
    assert AnswerSchema({"type": "string"}).read('"a"') == '"a"'


def test_an_error_quotes_the_answer_and_says_what_helps() -> None:
    read = AnswerSchema(SCHEMA).read('{"m": "' + "x" * 5_000)
    assert isinstance(read, Misfit)
    error = read.error(3, "length")
    assert error.code == "invalid_answer"
    assert '{"m": "xxx' in error.message
    assert len(error.message) < 2_500
    assert "max_tokens" in error.suggestions[0]


def test_a_schema_that_can_not_be_used_says_so() -> None:
    with pytest.raises(BadResponseSchema, match="response_schema"):
        AnswerSchema({"type": "nothing"})
