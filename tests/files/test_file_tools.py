"""The tools of files, as a model calls them."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from kernel.blobs import BlobPlace, Blobs
from kernel.files import Files
from kernel.ids import new_id
from orchestrator.tools.file_changes import DeleteFile, EditFile, MoveFile, WriteFile
from orchestrator.tools.files import ListFiles, ReadFile
from orchestrator.tools.tool import ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome
from tests.files.conftest import LIMITS, Workspace


class Model:
    """Calls tools in one workspace."""

    def __init__(self, workspace: Workspace, files: Files | None = None) -> None:
        files = files or workspace.files
        kinds = (ListFiles, ReadFile, WriteFile, EditFile, MoveFile, DeleteFile)
        self.box = Toolbox([kind(files) for kind in kinds], sleep=_at_once)
        self.workspace = workspace
        self.run = new_id("run")
        self.calls = 0

    async def call(self, name: str, *, again: bool = False, **arguments: Any) -> ToolOutcome:
        """Makes a call; `again`: under the key of the one before."""
        self.calls += not again
        key = f"{self.run}:step:{self.calls}"
        context = ToolContext(self.workspace.org, None, None, self.workspace.session, self.run, "call", key)
        return await self.box.call(name, arguments, context, allowed=self.box.names)

    async def ok(self, name: str, **arguments: Any) -> Any:
        """What a call gives that must do: JSON, or a text."""
        outcome = await self.call(name, **arguments)
        assert outcome.status == "ok", outcome
        return outcome.result if name == "read_file" else orjson.loads(outcome.result)

    async def refused(self, name: str, **arguments: Any) -> str:
        """Why a call can't be made."""
        outcome = await self.call(name, **arguments)
        assert outcome.status == "error", outcome
        return outcome.result


async def _at_once(seconds: float) -> None:
    pass


@pytest.fixture
def model(workspace: Workspace) -> Model:
    return Model(workspace)


async def test_a_model_writes_reads_edits_moves_and_deletes(model: Model) -> None:
    assert await model.ok("write_file", path="a/plan.md", content="one\ntwo\n") == {"path": "a/plan.md", "size": 8}
    assert await model.ok("read_file", path="a/plan.md") == "one\ntwo\n"
    await model.ok("edit_file", path="a/plan.md", old_text="two", new_text="zwei ä")
    await model.ok("write_file", path="a/plan.md", content="three\n", mode="append")
    assert await model.ok("read_file", path="a/plan.md") == "one\nzwei ä\nthree\n"
    await model.ok("move_file", source="a/plan.md", target="plan.md")
    listed = await model.ok("list_files")
    assert [(file["path"], file["size"], file["type"]) for file in listed["files"]] == [
        ("plan.md", 18, "text/markdown")
    ]
    assert listed["workspace"] == {"files": 1, "bytes": 18, "bytes_left": LIMITS.session_bytes - 18}
    assert await model.ok("delete_file", path="plan.md") == {"deleted": "plan.md"}
    assert (await model.ok("list_files"))["files"] == []


async def test_what_a_run_writes_is_known_to_be_the_runs(model: Model) -> None:
    await model.ok("write_file", path="a", content="x")
    assert (await model.workspace.files.stat(*model.workspace.at, "a")).run_id == model.run


async def test_passages_are_read_by_lines(model: Model) -> None:
    await model.workspace.write("a", "".join(f"line {number}\n" for number in range(1, 3001)).encode())
    text = await model.ok("read_file", path="a", offset=10, limit=2)
    assert text == "line 10\nline 11\n\n[lines 10 to 11; the file goes on: read from offset=12]"
    assert (await model.ok("read_file", path="a", offset=2999)) == "line 2999\nline 3000\n"
    assert "the file has 3000 lines" in await model.ok("read_file", path="a", offset=4000)
    everything, offset = "", 1
    while True:
        text = await model.ok("read_file", path="a", offset=offset)
        body, _, note = text.partition("\n[")
        everything += body
        if not note:
            break
        offset = int(note.partition("offset=")[2].rstrip("]"))
    assert everything.split() == "".join(f"line {number}\n" for number in range(1, 3001)).split()


@pytest.mark.parametrize("letter", ["x", "ж", "数"])
async def test_a_line_of_any_length_can_be_read_to_its_end(model: Model, letter: str) -> None:
    text = letter * 100_000 + "\nend"
    await model.workspace.write("a", text.encode())
    found, offset, skip = "", 1, 0
    for _ in range(20):
        part = await model.ok("read_file", path="a", offset=offset, skip=skip)
        body, mark, note = part.partition("\n[line ")
        found += body
        if not mark:
            break
        offset = int(note.partition("offset=")[2].partition(",")[0])
        skip = int(note.partition("skip=")[2].rstrip("]"))
    assert found == text


async def test_a_file_that_is_not_text_is_said_to_be_none(model: Model) -> None:
    await model.workspace.write("a.png", b"\x89PNG\r\n\0\0\0")
    assert "a.png is not text: 9 bytes of image/png" in await model.ok("read_file", path="a.png")
    await model.workspace.write("empty")
    await model.workspace.write("empty", b"")
    assert await model.ok("read_file", path="empty") == "[the file is empty]"
    assert "can't be edited" in await model.refused("edit_file", path="a.png", old_text="PNG", new_text="x")


@pytest.mark.parametrize(
    ("data", "encoding", "shown"),
    [
        ("ä\n".encode("utf-8-sig"), "auto", "ä\n"),
        ("ä\n".encode("utf-16"), "auto", "ä\n\n[read as utf-16]"),
        (b"gr\xfc\xdfe", "auto", "grüße\n[read as cp1252]"),
        ("привет".encode("koi8-r"), "koi8-r", "привет\n[read as koi8-r]"),
        (b"a\xffb", "utf-8", "a\ufffdb"),
        (b"a" * 9000 + b"\xff", "auto", "a" * 9000 + "ÿ\n[read as cp1252]"),
        (b"a\0b", "latin-1", "a\ufffdb\n[read as latin-1]"),
    ],
)
async def test_texts_are_decoded(model: Model, data: bytes, encoding: str, shown: str) -> None:
    await model.workspace.write("a", data)
    assert await model.ok("read_file", path="a", encoding=encoding) == shown


async def test_an_edit_needs_a_passage_that_is_there_once(model: Model) -> None:
    await model.workspace.write("a", b"aaa b c b")
    assert "does not stand" in await model.refused("edit_file", path="a", old_text="nowhere", new_text="x")
    for text in ("b", "aa"):
        assert "more than once" in await model.refused("edit_file", path="a", old_text=text, new_text="x")
    assert "There is no file 'nothing'" in await model.refused("edit_file", path="nothing", old_text="a", new_text="b")
    await model.ok("edit_file", path="a", old_text="b c b", new_text="$0 \\1")
    assert await model.workspace.read("a") == b"aaa $0 \\1"


async def test_line_ends_and_marks_of_a_file_stay_as_they_are(model: Model) -> None:
    await model.workspace.write("a", "\ufeffone\r\ntwo\r\nthree\r\n".encode())
    await model.ok("edit_file", path="a", old_text="one\ntwo\n", new_text="1\n2\n")
    assert await model.workspace.read("a") == "\ufeff1\r\n2\r\nthree\r\n".encode()


async def test_parallel_edits_of_one_file_all_arrive(model: Model) -> None:
    await model.workspace.write("a", b"-1- -2- -3- -4-")
    edits = [
        Model(model.workspace).ok("edit_file", path="a", old_text=f"-{n}-", new_text=f"+{n}+") for n in range(1, 5)
    ]
    await asyncio.gather(*edits)
    assert await model.workspace.read("a") == b"+1+ +2+ +3+ +4+"


async def test_a_call_that_is_made_again_does_nothing_more(model: Model) -> None:
    """A worker died before it could say that the call was made; meanwhile others went on."""
    other = Model(model.workspace)
    await model.ok("write_file", path="a", content="x")
    await other.ok("write_file", path="a", content="by another")
    assert (await model.call("write_file", again=True, path="a", content="x")).status == "ok"
    await model.ok("write_file", path="a", content=", more", mode="append")
    assert (await model.call("write_file", again=True, path="a", content=", more", mode="append")).status == "ok"
    assert await model.workspace.read("a") == b"by another, more"
    await model.ok("edit_file", path="a", old_text="more", new_text="more and more.")
    outcome = await model.call("edit_file", again=True, path="a", old_text="more", new_text="more and more.")
    assert (outcome.status, outcome.result) == ("ok", '{"done":true}')
    assert await model.workspace.read("a") == b"by another, more and more."
    await model.ok("move_file", source="a", target="b")
    assert (await model.call("move_file", again=True, source="a", target="b")).status == "ok"
    await model.ok("delete_file", path="b")
    assert (await model.call("delete_file", again=True, path="b")).status == "ok"
    assert "There is no file" in await model.refused("delete_file", path="b")


async def test_what_can_not_be_done_is_said_in_words(model: Model) -> None:
    await model.ok("write_file", path="a", content="x")
    assert "already" in await model.refused("write_file", path="a", content="y", mode="create")
    assert "is a file" in await model.refused("write_file", path="a/b", content="y")
    await model.workspace.write("large", bytes(LIMITS.file_bytes))
    assert "at most 8000000 bytes" in await model.refused("write_file", path="large", content="x", mode="append")
    await model.ok("delete_file", path="large")
    await model.ok("write_file", path="b", content="y")
    assert "already" in await model.refused("move_file", source="a", target="b")
    assert "There is no file" in await model.refused("read_file", path="c")
    assert "path" in await model.refused("read_file", path="../c")
    assert "must be relative" in await model.refused("write_file", path="/etc/passwd", content="x")
    assert "offset" in await model.refused("read_file", path="a", offset=0)
    for number in range(4):
        await model.ok("write_file", path=f"more {number}", content="x")
    assert "6 files already" in await model.refused("write_file", path="one too many", content="x")


async def test_a_long_list_goes_on(model: Model) -> None:
    at = model.workspace.at
    await model.workspace.write("first")
    await model.workspace.db.execute(
        "INSERT INTO files (session_id, path, org_id, size, content_type, sha256, blob) "
        "SELECT session_id, 'f' || lpad(n::text, 4, '0'), org_id, 1, 'a/b', sha256, blob || n "
        "FROM files, generate_series(1, 500) AS n WHERE session_id = $1",
        at[1],
    )
    paths, after = [], ""
    for _ in range(10):
        listed = await model.ok("list_files", after=after)
        paths += [file["path"] for file in listed["files"]]
        if "note" not in listed:
            break
        after = paths[-1]
        assert repr(after) in listed["note"]
    assert paths == sorted(paths)
    assert len(paths) == 501
    assert len((await model.ok("list_files", prefix="f000"))["files"]) == 9


async def test_a_store_that_is_away_is_told_to_the_model(workspace: Workspace) -> None:
    await workspace.write("a", b"x")
    away = Files(workspace.db, Blobs(BlobPlace("s3://bucket", "http://127.0.0.1:9")), LIMITS)
    outcome = await Model(workspace, away).call("read_file", path="a")
    assert outcome.status == "error"
    assert "out of reach" in outcome.result
    assert "127.0.0.1" not in outcome.result
