"""The guide on memory, as a reader would follow it."""

from __future__ import annotations

import json
from typing import Any

from kernel.tenants import create_key, ensure_org
from tests.docs.test_documents import blocks, shell
from tests.stack import Stack

GUIDE = "docs/guides/memory.md"


async def test_the_requests_of_the_guide_do_what_it_says(stack: Stack) -> None:
    org = await ensure_org(stack.database, "readers of the guide on memory")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    searched, superseded, erased = [await shell(block, URL=stack.url, KEY=key) for block in blocks(GUIDE, "bash")]

    kept, found = _documents(searched)
    assert (kept["kind"], kept["scope"], kept["owner"], kept["provenance"]) == ("preference", "user", "ada", "person")
    assert [item["id"] for item in found["data"]] == [kept["id"]]

    successor, listed = _documents(superseded)
    assert successor["text"] == "The office is in Oslo."
    [old] = [memory for memory in listed["data"] if memory["ended_at"] is not None]
    assert (old["text"], old["superseded_by"]) == ("The office is in Bergen.", successor["id"])

    exported, count = _documents(erased)
    assert exported["id"] == kept["id"]
    assert count == {"erased": 1}


def _documents(text: str) -> list[Any]:
    """The JSON objects that were printed one after another."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        one, end = decoder.raw_decode(rest)
        found.append(one)
        rest = rest[end:].lstrip()
    return found
