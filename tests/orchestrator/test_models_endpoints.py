"""Which endpoint a choice of model means, with which key it is asked, and which addresses may be named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from cli.rehearsal import Hang, HttpError, ModelServer, Reply
from kernel.agent_config import ModelChoice
from kernel.settings import Settings
from orchestrator.errors import ModelAddressRefused, ModelMisconfigured, ModelTimedOut, UnknownProvider
from orchestrator.models import Models
from orchestrator.models.choice import merged
from orchestrator.models.endpoints import KEPT_ENDPOINTS
from orchestrator.tools.errors import ToolFailure
from orchestrator.tools.tool import NoSecrets
from tests.orchestrator.turns import KEY, Script, take
from tests.waiting import eventually

NAME = "gateway.example.com"


class Secrets(NoSecrets):
    """A vault with these secrets."""

    def __init__(self, **secrets: str) -> None:
        self._secrets = secrets

    async def reveal(self, name: str) -> str:
        if name not in self._secrets:
            raise ToolFailure(f"There is no secret named {name!r}.", reached=False)
        return self._secrets[name]


def settings(url: str, *allow: str, **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "DATABASE_URL": "postgresql://localhost/x",
            "REDIS_URL": "redis://localhost",
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": KEY,
            "LLM_MODEL": "the-default",
            "secret_key": "s" * 32,
            "egress_allow": allow,
            "model_retries": 0,
            **more,
        }
    )


def authorities(*servers: ModelServer) -> list[str]:
    return [URL(server.url).authority for server in servers]


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[ModelServer, ModelServer]]:
    async with ModelServer(Script([Reply(["ours"])])) as ours, ModelServer(Script([Reply(["theirs"])])) as theirs:
        yield ours, theirs


@asynccontextmanager
async def models_of(given: Settings, **options: Any) -> AsyncIterator[Models]:
    models = Models(given, **options)
    yield models
    await models.aclose()


def got(server: ModelServer) -> list[Mapping[str, Any]]:
    return [received.headers for received in server.requests]


async def test_each_endpoint_gets_the_key_that_was_named_for_it() -> None:
    async with two_servers() as (ours, theirs), models_of(settings(ours.url, *authorities(theirs))) as models:
        vault = Secrets(theirs="key-of-theirs", other="another-key")
        for name in ("theirs", "other", "theirs"):
            choice = ModelChoice(name="m", base_url=theirs.url, api_key=name)
            assert (await take(await models.choose(choice, vault))).text == "theirs"
        assert (await take(await models.choose(ModelChoice(), vault))).text == "ours"
    keys = [headers["authorization"] for headers in got(theirs)]
    assert keys == ["Bearer key-of-theirs", "Bearer another-key", "Bearer key-of-theirs"]
    assert theirs.accepted == 2, "one client for each key"
    assert [headers["authorization"] for headers in got(ours)] == [f"Bearer {KEY}"]
    assert [received.body["model"] for received in ours.requests] == ["the-default"]


async def test_the_deployments_key_is_not_sent_to_an_address_that_a_caller_names() -> None:
    async with two_servers() as (ours, theirs), models_of(settings(ours.url, *authorities(ours, theirs))) as models:
        for url in (theirs.url, ours.url):
            choice = ModelChoice(name="m", base_url=url)
            assert (await take(await models.choose(choice, NoSecrets()))).turn is not None
        assert all("authorization" not in headers for headers in (*got(ours), *got(theirs)))
        assert KEY not in str([received.headers for server in (ours, theirs) for received in server.requests])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/v1",
        "http://[::1]:9/v1",
        "http://2130706433/v1",
        "http://169.254.169.254/latest",
        "http://10.0.0.1/v1",
        "https://user:password@example.com/v1",
        "http://0x7f.1/v1",
    ],
)
async def test_a_private_address_is_refused(url: str) -> None:
    async with models_of(settings("http://127.0.0.1:9/v1")) as models:
        with pytest.raises(ModelAddressRefused) as caught:
            await models.choose(ModelChoice(base_url=url), NoSecrets())
    assert not caught.value.retryable
    assert caught.value.suggestions
    assert "password" not in caught.value.message.replace("passwords", "")


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::ffff:127.0.0.1"]])
async def test_a_name_that_leads_to_a_private_address_is_refused(found: list[str]) -> None:
    async with two_servers() as (ours, theirs):
        port = URL(theirs.url).port

        async def resolve(host: str, port: int) -> Sequence[str]:
            return found

        async with models_of(settings(ours.url), resolve=resolve) as models:
            choice = ModelChoice(base_url=f"http://{NAME}:{port}/v1")
            error = (await take(await models.choose(choice, NoSecrets()))).error
        assert isinstance(error, ModelAddressRefused)
        assert theirs.accepted == 0


async def test_a_name_is_resolved_once_for_each_connection_and_that_answer_is_used() -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with two_servers() as (ours, theirs):
        port = URL(theirs.url).port
        async with models_of(settings(ours.url, f"{NAME}:{port}"), resolve=resolve) as models:
            choice = ModelChoice(base_url=f"http://{NAME}:{port}/v1")
            for _ in range(2):
                assert (await take(await models.choose(choice, NoSecrets()))).text == "theirs"
        assert asked == [NAME]
        assert got(theirs)[0]["host"] == f"{NAME}:{port}"


async def test_a_redirect_of_a_callers_endpoint_is_not_followed() -> None:
    async with ModelServer(Script([Reply(["secret"])])) as inside:
        away = Reply(fault=HttpError(307, b"", {"Location": f"{inside.url}/chat/completions"}))
        async with (
            ModelServer(Script([away])) as outside,
            models_of(settings(inside.url, *authorities(outside))) as models,
        ):
            error = (await take(await models.choose(ModelChoice(base_url=outside.url), NoSecrets()))).error
        assert error is not None
        assert error.code == "model_refused"
        assert any("base_url" in hint for hint in error.suggestions)
        assert inside.accepted == 0


async def test_errors_of_a_callers_endpoint_name_the_callers_settings_and_hold_no_key() -> None:
    refused = Reply(fault=HttpError(401, {"error": {"message": "bad key my-own-key-1"}}))
    async with (
        ModelServer(Script([refused])) as theirs,
        models_of(settings("http://127.0.0.1:9/v1", *authorities(theirs))) as models,
    ):
        choice = ModelChoice(base_url=theirs.url, api_key="mine")
        error = (await take(await models.choose(choice, Secrets(mine="my-own-key-1")))).error
    assert error is not None
    shown = " ".join((error.message, *error.suggestions))
    assert "my-own-key-1" not in shown
    assert "api_key" in shown
    assert "OPENAI_API_KEY" not in shown


@pytest.mark.parametrize("secrets", [{}, {"mine": "two\nlines"}])
async def test_a_key_that_is_missing_or_can_be_none_is_said_to_be(secrets: dict[str, str]) -> None:
    async with models_of(settings("http://127.0.0.1:9/v1")) as models:
        choice = ModelChoice(base_url="https://example.com/v1", api_key="mine")
        with pytest.raises(ModelMisconfigured) as caught:
            await models.choose(choice, Secrets(**secrets))
    assert "api_key" in caught.value.message
    assert "lines" not in caught.value.message


async def test_an_endpoint_that_nobody_uses_is_closed_and_opens_again() -> None:
    async with (
        two_servers() as (ours, theirs),
        models_of(settings(ours.url, *authorities(theirs)), idle=0.02) as models,
    ):
        chat = await models.choose(ModelChoice(base_url=theirs.url), NoSecrets())
        assert (await take(chat)).text == "theirs"

        async def closed() -> bool:
            return models.open_endpoints == 0

        await eventually(closed, what="the endpoint is closed")
        assert (await take(chat)).text == "theirs"
        assert theirs.accepted == 2


async def test_an_endpoint_in_the_midst_of_an_answer_is_not_closed() -> None:
    async with (
        ModelServer(Script([Reply(["a ", "b"], token_delay=0.2)])) as theirs,
        models_of(settings("http://127.0.0.1:9/v1", *authorities(theirs)), idle=0.01) as models,
    ):
        assert (await take(await models.choose(ModelChoice(base_url=theirs.url), NoSecrets()))).text == "a b"


async def test_only_so_many_endpoints_are_kept() -> None:
    async with two_servers() as (ours, theirs), models_of(settings(ours.url, *authorities(theirs))) as models:
        secrets = {f"s{number}": f"key-{number}" for number in range(KEPT_ENDPOINTS + 5)}
        vault = Secrets(**secrets)
        for name in secrets:
            choice = ModelChoice(base_url=theirs.url, api_key=name)
            assert (await take(await models.choose(choice, vault))).text == "theirs"
        assert models.open_endpoints == KEPT_ENDPOINTS


async def test_the_parameters_of_a_choice_are_in_the_request() -> None:
    async with two_servers() as (ours, _), models_of(settings(ours.url)) as models:
        choice = ModelChoice(
            name="m", temperature=0.1, top_p=0.9, max_tokens=77, reasoning_effort="low", seed=11, idle_timeout_seconds=9
        )
        chat = await models.choose(choice, NoSecrets())
        assert await models.choose(choice, NoSecrets()) is chat
        await take(chat)
    body = ours.requests[-1].body
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0.1, 0.9, 77)
    assert (body["reasoning_effort"], body["seed"], body["model"]) == ("low", 11, "m")


async def test_the_idle_timeout_of_a_choice_is_its_own() -> None:
    silent = Reply(["a "], fault=Hang(1))
    async with ModelServer(Script([silent])) as ours, models_of(settings(ours.url)) as models:
        taken = await take(await models.choose(ModelChoice(idle_timeout_seconds=0.1), NoSecrets()))
    assert isinstance(taken.error, ModelTimedOut)
    assert taken.text == "a "


async def test_a_provider_that_is_not_there_is_named_with_those_that_are() -> None:
    async with models_of(settings("http://127.0.0.1:9/v1"), providers={"acme": lambda choice: None}) as models:
        with pytest.raises(UnknownProvider, match=r"'nope'.*There are: acme"):
            await models.choose(ModelChoice(provider="nope"), NoSecrets())


# the run's choice over the agent's


def test_what_a_run_asks_for_goes_over_what_the_agent_has() -> None:
    agent = ModelChoice(name="a", temperature=0.5, fallbacks=["b"])
    assert merged(agent, None) is agent
    assert merged(None, None) == ModelChoice()
    assert merged(agent, "x") == ModelChoice(name="x", temperature=0.5, fallbacks=["b"])
    assert merged(agent, {"top_p": 0.3, "fallbacks": []}) == ModelChoice(
        name="a", temperature=0.5, top_p=0.3, fallbacks=[]
    )


@pytest.mark.parametrize("place", [{"base_url": "https://elsewhere.example.com"}, {"provider": "acme"}])
def test_a_run_that_names_another_place_never_has_the_agents_key_sent_there(place: dict[str, str]) -> None:
    agent = ModelChoice(name="a", base_url="https://gateway.example.com", api_key="of_the_agent", fallbacks=["b"])
    choice = merged(agent, place)
    assert choice == ModelChoice(name="a", **place)  # type: ignore[arg-type]
