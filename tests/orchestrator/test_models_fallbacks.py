"""Models that are asked in order: when the next one is asked, what is taken back, and what is said when all fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from cli.rehearsal import BreakOff, ChatRequest, Fault, HangUp, HttpError, ModelServer, Raw, Reply
from kernel.agent_config import ModelChoice
from orchestrator.models import ChatProvider, Models
from orchestrator.tools.tool import NoSecrets
from tests.orchestrator.test_models_endpoints import settings
from tests.orchestrator.turns import take

BUSY = HttpError(503, {"error": {"message": "overloaded"}})
UNKNOWN = HttpError(404, {"error": {"message": "no such model"}})


@asynccontextmanager
async def ladder(replies: Mapping[str, Reply], *, retries: int = 0) -> AsyncIterator[tuple[ChatProvider, ModelServer]]:
    """A chat with the first of the models, with the others as its fallbacks."""

    def answer(request: ChatRequest) -> Reply:
        return replies[request.model]

    first, *others = replies
    async with ModelServer(answer) as server:
        models = Models(settings(server.url, model_retries=retries), backoff=0.01)
        yield await models.choose(ModelChoice(name=first, fallbacks=others), NoSecrets()), server
        await models.aclose()


def asked(server: ModelServer) -> list[str]:
    return [received.body["model"] for received in server.requests]


@pytest.mark.parametrize("fault", [BUSY, UNKNOWN, HttpError(400), HttpError(401), HangUp(), Raw([b"<html>"])])
async def test_the_next_model_is_asked_when_one_fails(fault: Fault) -> None:
    async with ladder({"a": Reply(fault=fault), "b": Reply(fault=BUSY), "c": Reply(["from c"])}) as (chat, server):
        taken = await take(chat)
    assert (taken.text, taken.restarts) == ("from c", [])
    assert taken.turn is not None
    assert taken.turn.model == "c"
    assert asked(server) == ["a", "b", "c"]


async def test_a_model_that_answers_has_no_fallback_asked() -> None:
    async with ladder({"a": Reply(["from a"]), "b": Reply(["from b"])}) as (chat, server):
        taken = await take(chat)
    assert taken.turn is not None
    assert (taken.text, taken.turn.model, asked(server)) == ("from a", "a", ["a"])


async def test_each_model_is_tried_again_first_where_that_may_help() -> None:
    replies = {"a": Reply(fault=BUSY), "b": Reply(fault=UNKNOWN), "c": Reply(["from c"])}
    async with ladder(replies, retries=2) as (chat, server):
        assert (await take(chat)).text == "from c"
    assert asked(server) == ["a", "a", "a", "b", "c"]


async def test_what_a_model_said_before_it_failed_is_taken_back() -> None:
    broken = Reply(["half ", "an ", "answer"], fault=BreakOff(2), token_delay=0.001)
    async with ladder({"a": broken, "b": broken, "c": Reply(["whole"])}, retries=2) as (chat, server):
        taken = await take(chat)
    assert (taken.text, taken.restarts) == ("whole", ["half an ", "half an "])
    assert asked(server) == ["a", "b", "c"], "an answer that was begun is not asked for again"


async def test_when_all_fail_the_last_error_says_what_each_said() -> None:
    quota = HttpError(402, {"error": {"message": "pay first"}})
    replies = {"a": Reply(fault=BUSY), "b": Reply(fault=UNKNOWN), "c": Reply(fault=quota)}
    async with ladder(replies) as (chat, _):
        error = (await take(chat)).error
    assert error is not None
    assert error.code == "model_refused"
    assert error.retryable, "the first one may work later"
    for what in ("None of 3 models", "c: ", "pay first", "a: ", "overloaded", "b: ", "no such model"):
        assert what in error.message
    assert str(error) == error.message
    assert len(error.suggestions) == len(set(error.suggestions)) >= 2


async def test_an_endpoint_that_is_away_is_not_asked_for_another_model() -> None:
    models = Models(settings("http://127.0.0.1:9/v1"))
    error = (await take(await models.choose(ModelChoice(name="a", fallbacks=["b", "c"]), NoSecrets()))).error
    await models.aclose()
    assert error is not None
    assert error.code == "model_unreachable"
    assert "models" not in error.message


async def test_a_model_that_is_named_twice_is_asked_once() -> None:
    async with ladder({"a": Reply(fault=UNKNOWN)}) as (_, server):
        models = Models(settings(server.url))
        choice = ModelChoice(name="a", fallbacks=["a", "a"])
        assert (await take(await models.choose(choice, NoSecrets()))).error is not None
        await models.aclose()
    assert asked(server) == ["a"]
