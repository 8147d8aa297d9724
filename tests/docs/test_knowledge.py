"""The guide on the knowledge base, as a reader would follow it."""

from __future__ import annotations

from pathlib import Path

import orjson

from kernel.tenants import create_key, ensure_org
from tests.docs.test_documents import blocks, example, shell
from tests.documents import made
from tests.stack import Stack

GUIDE = "docs/guides/knowledge.md"


async def test_the_requests_of_the_guide_do_what_it_says(stack: Stack, tmp_path: Path) -> None:
    org = await ensure_org(stack.database, "readers of the guide on the knowledge base")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    [block] = blocks(GUIDE, "bash")
    event, found, passages = (await shell(f"cd {tmp_path}\n{block}", URL=stack.url, KEY=key)).splitlines()
    assert event == "event: ready"
    [item] = orjson.loads(found)["data"]
    assert (item["text"], item["source"]) == ("A ship pays eleven crowns for each ton.", "handbook.md, Fees")
    assert [passage["id"] for passage in orjson.loads(passages)["data"]] == [item["id"]]
    assert await stack.database.fetchval("SELECT count(*) FROM memories WHERE org_id = $1", org) == 0


async def test_the_text_of_the_guide_can_be_uploaded(stack: Stack) -> None:
    org = await ensure_org(stack.database, "readers of the guide on the knowledge base")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    [body] = blocks(GUIDE, "json")
    upload = (
        f"curl -sf -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}' $URL/v1/documents"
    )
    document = orjson.loads(await shell(upload, URL=stack.url))
    assert (document["name"], document["scope"]) == ("opening-hours.txt", "org")


async def test_the_function_of_the_guide_cuts_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.pdf"
    path.write_bytes(made.pdf([("Rules", 20), ("No smoking.", 11)]))
    cut = example(GUIDE, "cut")
    assert await cut(path) == ["p. 1, Rules: No smoking."]
