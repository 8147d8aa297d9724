"""The examples of the guide on models."""

from __future__ import annotations

import orjson

from cli.rehearsal import ChatRequest, ModelServer, Reply
from kernel.agent_config import ModelChoice
from orchestrator.models import Models
from orchestrator.models.provider import ProviderFactory
from orchestrator.tools.tool import NoSecrets
from tests.conftest import MakeStack
from tests.docs.test_documents import blocks, example, shell
from tests.e2e.caller import calling
from tests.e2e.conftest import new_key
from tests.history import assert_history
from tests.orchestrator.test_models_endpoints import settings
from tests.orchestrator.turns import take
from tests.scripts import ScriptedModel, said

GUIDE = "docs/guides/models.md"
FITS = '{"city": "Bergen", "people": 291940}'


async def test_the_requests_of_the_guide_do_what_it_says(make_stack: MakeStack, model: ScriptedModel) -> None:
    def gateway(request: ChatRequest) -> Reply:
        return said("Oslo.")

    async with ModelServer(gateway) as elsewhere:
        stack = await make_stack(LONGHAUL_EGRESS_ALLOW=elsewhere.url.split("/")[2])
        key = await new_key(stack)
        vision = model.script(said("Red."))
        names = {
            "MODEL": model.script(said("Oslo.")),
            "BACKUP": model.script(said("Oslo?")),
            "STRUCTURED": model.script(said("About 290,000."), said(FITS)),
            "VISION": vision,
            "GATEWAY": elsewhere.url,
            "GATEWAY_KEY": "key-of-the-gateway",
        }
        agent, other, structured, image = [
            await shell(block, URL=stack.url, KEY=key, **names) for block in blocks(GUIDE, "bash")
        ]
        assert orjson.loads(agent)["version"] == 1
        assert structured.count("event: message_discarded\n") == 1
        assert '"parsed":{"city":"Bergen","people":291940}' in structured
        async with calling(stack.url, key) as caller:
            for taken, answer in ((other, "Oslo."), (image, "Red.")):
                run = await caller.finished(orjson.loads(taken)["id"])
                assert run["answer"] == answer
                await assert_history(stack.database, run["id"])
        assert elsewhere.requests[-1].headers["authorization"] == "Bearer key-of-the-gateway"
        assert model.asked(vision)[0].messages[-1]["content"][1]["type"] == "image_url"
        await stack.stop()


async def said_by(name: str, choice: ModelChoice) -> str:
    factory: ProviderFactory = example(GUIDE, name)
    models = Models(settings("http://127.0.0.1:9/v1"), providers={name: factory})
    taken = await take(await models.choose(choice, NoSecrets()))
    await models.aclose()
    assert taken.error is None
    return taken.text


async def test_the_providers_of_the_guide_answer() -> None:
    assert await said_by("parrot", ModelChoice(provider="parrot", name="polly")) == "polly says hello"
    assert await said_by("shouting", ModelChoice(provider="shouting")) == "HELLO"
