"""The guide on files, as a reader would follow it."""

from __future__ import annotations

from pathlib import Path

import orjson

from kernel.agent_config import AgentConfig
from kernel.blobs import BlobPlace, Blobs
from kernel.file_quotas import FileLimits
from kernel.files import Files
from kernel.postgres import Pool
from kernel.sessions import create_session
from kernel.tenants import create_key, ensure_org
from tests.docs.test_documents import blocks, example, shell
from tests.stack import Stack

GUIDE = "docs/guides/files.md"


async def test_the_requests_of_the_guide_do_what_it_says(stack: Stack) -> None:
    org = await ensure_org(stack.database, "readers of the guide on files")
    key = (await create_key(stack.database, org, name="reader")).secret.get_secret_value()
    [block] = blocks(GUIDE, "bash")
    made, listed, *lines = (await shell(block, URL=stack.url, KEY=key)).splitlines()
    assert orjson.loads(made)["content_type"] == "text/csv"
    assert [file["path"] for file in orjson.loads(listed)["data"]] == ["data/may.csv"]
    assert lines == ["name,amount", "Ada,10", "Bob,20"]
    assert await stack.database.fetchval("SELECT count(*) FROM files WHERE org_id = $1", org) == 0


async def test_the_agent_of_the_guide_is_one() -> None:
    [block] = blocks(GUIDE, "json")
    assert AgentConfig.model_validate_json(block).skills == ["file_manager", "data_query"]


async def test_the_function_of_the_guide_works(database: Pool, org: str, tmp_path: Path) -> None:
    limits = FileLimits(file_bytes=1_000, session_bytes=1_000, session_files=10)
    files = Files(database, Blobs(BlobPlace((tmp_path / "blobs").as_uri())), limits)
    session = await create_session(database, org)
    assert await example(GUIDE, "double")(files, org, session.id, tmp_path) == 8
    assert (tmp_path / "copy.txt").read_bytes() == b"1\n2\n1\n2\n"
