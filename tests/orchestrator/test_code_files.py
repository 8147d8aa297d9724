"""Code in both sandboxes reads the files of its session, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel.blobs import BlobPlace, Blobs
from kernel.file_quotas import FileLimits
from kernel.files import Author, Files
from kernel.postgres import Pool
from kernel.sessions import create_session
from orchestrator.sandbox.bubblewrap import Bubblewrap
from orchestrator.sandbox.session_files import SessionFiles
from orchestrator.tools.cpython import CPythonTool
from orchestrator.tools.python import PythonTool
from orchestrator.tools.tool import Tool, ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

MISSING = Bubblewrap.missing()
BOXES = () if MISSING else (Bubblewrap(),)
boxed = pytest.mark.skipif(MISSING is not None, reason=f"no sandbox here: {MISSING}")
both = pytest.mark.parametrize("name", ["python", pytest.param("cpython", marks=boxed)])


class Bench:
    """A session with files, and the tools that run code for it."""

    def __init__(self, files: Files, toolbox: Toolbox, context: ToolContext) -> None:
        self.files = files
        self.toolbox = toolbox
        self.context = context

    async def put(self, path: str, data: bytes) -> None:
        await self.files.write(self.context.org_id, self.context.session_id, path, data, by=Author())

    async def run(self, name: str, code: str, *, context: ToolContext | None = None) -> ToolOutcome:
        return await self.toolbox.call(name, {"code": code}, context or self.context, allowed=[name])


async def new_session(database: Pool, org: str) -> str:
    return (await create_session(database, org, user_id=None, agent_id=None, title=None, metadata={})).id


@pytest.fixture
async def bench(database: Pool, org: str, tmp_path: Path) -> AsyncIterator[Bench]:
    files = Files(database, Blobs(BlobPlace(f"file://{tmp_path}")), FileLimits(2**27, 2**28, 1000))
    tools: list[Tool[Any]] = [PythonTool(files=SessionFiles(files))]
    tools += [CPythonTool(box, SessionFiles(files)) for box in BOXES]
    toolbox = Toolbox(tools)
    session = await new_session(database, org)
    yield Bench(files, toolbox, ToolContext(org, None, None, session, "run_1", "call_1", "run_1:2:call_1"))
    await toolbox.aclose()


@both
async def test_code_reads_the_files_of_its_session(bench: Bench, name: str) -> None:
    await bench.put("notes.txt", b"one\ntwo\n")
    await bench.put("deep/er/table.csv", b"a,b\n1,2\n")
    code = "len(open('/files/notes.txt').readlines()), open('/files/deep/er/table.csv').read()"
    ran = await bench.run(name, code)
    assert ran.status == "ok"
    assert "(2, 'a,b\\\\n1,2\\\\n')" in ran.result


@both
async def test_code_that_does_not_ask_for_files_is_given_none(bench: Bench, name: str) -> None:
    await bench.put("notes.txt", b"one")
    ran = await bench.run(name, "import os\nopen('/fil' + 'es/notes.txt').read()")
    assert "No such file" in ran.result or "not" in ran.result.lower()
    assert "one" not in ran.result


@both
@pytest.mark.parametrize(
    "code",
    [
        "open('/files/../etc/passwd').read()",
        "open('/files/../../../../../../etc/passwd').read()",
        "open('/files/notes.txt/../../etc/passwd').read()",
        "open('/etc/passwd').read()  # /files",
        "open('/files/notes.txt', 'w').write('x')",
        "open('/files/new.txt', 'w').write('x')",
    ],
)
async def test_code_reaches_nothing_but_the_files_and_writes_none(bench: Bench, name: str, code: str) -> None:
    await bench.put("notes.txt", b"as it was")
    ran = await bench.run(name, code)
    assert "root:" not in ran.result
    assert ran.status == "error" or '"exit_code":1' in ran.result
    assert await bench.files.read(bench.context.org_id, bench.context.session_id, "notes.txt", 100) == b"as it was"
    assert [file.path for file in await bench.files.list(bench.context.org_id, bench.context.session_id)] == [
        "notes.txt"
    ]


@both
async def test_files_of_other_sessions_are_not_there(bench: Bench, database: Pool, org: str, name: str) -> None:
    await bench.put("notes.txt", b"mine")
    other = replace(bench.context, session_id=await new_session(database, org))
    ran = await bench.run(name, "open('/files/notes.txt').read()", context=other)
    assert "mine" not in ran.result
    assert ran.status == "error" or '"exit_code":1' in ran.result


async def test_more_files_than_code_can_be_given_are_refused_in_words(bench: Bench) -> None:
    for number in range(201):
        await bench.put(f"{number}.txt", b"x")
    ran = await bench.run("python", "open('/files/1.txt').read()")
    assert ran.status == "error"
    assert "more than 200 files" in ran.result


async def test_no_copy_is_left_behind(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    await bench.put("notes.txt", b"x")
    await bench.run("python", "open('/files/notes.txt').read()")
    await bench.run("python", "open('/files/none.txt').read()")
    assert list((tmp_path / "copies").iterdir()) == []
