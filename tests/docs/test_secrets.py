"""The guide on secrets, as a reader would follow it."""

from __future__ import annotations

import orjson

from kernel.sealing import parse_keys
from kernel.tenants import create_key, ensure_org
from tests.docs.test_documents import blocks, example, shell
from tests.stack import Stack

GUIDE = "docs/guides/secrets.md"


async def test_the_requests_of_the_guide_do_what_it_says(stack: Stack) -> None:
    org = await ensure_org(stack.database, "readers of the guide on secrets")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    kept, run = [await shell(block, URL=stack.url, KEY=key) for block in blocks(GUIDE, "bash")]
    first, second, listed = kept.splitlines()
    assert (first, second) == ("201", "200")
    assert [secret["name"] for secret in orjson.loads(listed)["data"]] == ["weather_api"]
    assert await stack.database.fetchval("SELECT count(*) FROM secrets WHERE org_id = $1", org) == 0
    assert orjson.loads(run)["status"] == "queued"


def test_the_key_of_the_guide_can_be_set() -> None:
    name, _, value = example(GUIDE, "setting").partition("=")
    assert name == "LONGHAUL_SEALING_KEYS"
    assert [len(key) for key in parse_keys(value).values()] == [32]
