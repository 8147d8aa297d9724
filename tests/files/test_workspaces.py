"""A session's workspace: files are whole, within quotas, and of that session alone, over a directory and over S3."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from kernel.blobs import BlobPlace, Blobs
from kernel.errors import Conflict, InvalidInput, NotFound, StoreUnavailable
from kernel.file_quotas import FileTooLarge, NoRoom
from kernel.files import ABSENT, Author, FileChanged, Files
from kernel.ids import new_id
from kernel.sessions import create_session, delete_session
from tests.files.conftest import LIMITS, Workspace
from worker.retention import Policies, Retention

BIG = bytes(range(256)) * 26_000  # more than one part of an upload to S3


async def pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def broken(data: bytes) -> AsyncIterator[bytes]:
    async for piece in pieces(data):
        yield piece
    raise ConnectionAbortedError("the client is gone")


@pytest.mark.parametrize("data", [b"", b"hello", BIG], ids=["empty", "small", "several parts"])
async def test_what_was_written_is_read(workspace: Workspace, data: bytes, tmp_path: Path) -> None:
    file = await workspace.files.write(*workspace.at, "a/b.csv", pieces(data), by=Author("ada", "run_1"))
    assert (file.path, file.size, file.content_type) == ("a/b.csv", len(data), "text/csv")
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert (file.user_id, file.run_id) == ("ada", "run_1")
    assert await workspace.read("a/b.csv") == data
    copy = tmp_path / "copy"
    assert (await workspace.files.download_to(*workspace.at, "a/b.csv", copy)).size == len(data)
    assert copy.read_bytes() == data
    assert copy.stat().st_mode & 0o077 == 0
    assert await workspace.files.stat(*workspace.at, "a/b.csv") == file


async def test_a_part_of_a_file_is_read(workspace: Workspace) -> None:
    await workspace.write("a", b"0123456789")
    for start, end, part in ((2, 5, b"234"), (0, 1, b"0"), (7, None, b"789"), (7, 99, b"789"), (10, None, b"")):
        async with workspace.files.open(*workspace.at, "a", start=start, end=end) as (file, found):
            assert (file.size, b"".join([piece async for piece in found])) == (10, part)


async def test_files_are_listed_by_prefix_and_in_pages(workspace: Workspace) -> None:
    for path in ("b/2", "b/1", "a", "b-c"):
        await workspace.write(path)
    assert await workspace.paths() == ["a", "b-c", "b/1", "b/2"]
    assert [file.path for file in await workspace.files.list(*workspace.at, prefix="b/")] == ["b/1", "b/2"]
    assert [file.path for file in await workspace.files.list(*workspace.at, after="a", limit=2)] == ["b-c", "b/1"]
    assert [file.path for file in await workspace.files.list(*workspace.at, prefix="%")] == []


async def test_a_file_that_is_replaced_or_deleted_leaves_nothing_in_the_store(workspace: Workspace) -> None:
    first = await workspace.write("a", b"one")
    second = await workspace.write("a", b"two!")
    assert first != second
    assert await workspace.stored() == [f"{workspace.org}/{workspace.session}/{second}"]
    assert await workspace.files.usage(*workspace.at) == await workspace.files.usage(*workspace.at)
    await workspace.files.delete(*workspace.at, "a", by=Author())
    assert (await workspace.stored(), await workspace.loose()) == ([], [])
    usage = await workspace.files.usage(*workspace.at)
    assert (usage.files, usage.bytes) == (0, 0)
    with pytest.raises(NotFound):
        await workspace.files.delete(*workspace.at, "a", by=Author())


async def test_a_file_is_moved_and_replaces_only_when_told_to(workspace: Workspace) -> None:
    await workspace.write("a", b"moved")
    await workspace.write("b", b"old")
    with pytest.raises(Conflict):
        await workspace.files.move(*workspace.at, "a", "b", by=Author())
    moved = await workspace.files.move(*workspace.at, "a", "b", by=Author("bob"), replace=True)
    assert (moved.path, moved.user_id) == ("b", "bob")
    assert await workspace.read("b") == b"moved"
    assert await workspace.paths() == ["b"]
    assert (await workspace.files.usage(*workspace.at)).bytes == 5
    assert len(await workspace.stored()) == 1
    await workspace.files.move(*workspace.at, "b", "b/c", by=Author())
    assert await workspace.paths() == ["b/c"]
    with pytest.raises(NotFound):
        await workspace.files.move(*workspace.at, "b", "d", by=Author())


async def test_a_path_is_a_file_or_a_folder_but_never_both(workspace: Workspace) -> None:
    await workspace.write("a/b/c")
    for path in ("a", "a/b", "a/b/c/d", "a/b/c/d/e"):
        with pytest.raises(Conflict):
            await workspace.write(path)
    await workspace.write("a/b-")
    with pytest.raises(Conflict):
        await workspace.files.move(*workspace.at, "a/b-", "a/b", by=Author())
    assert await workspace.paths() == ["a/b-", "a/b/c"]
    assert len(await workspace.stored()) == 2


async def test_a_file_that_is_too_large_is_not_stored_announced_or_not(workspace: Workspace) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 65_536
            yield bytes(65_536)

    with pytest.raises(FileTooLarge):
        await workspace.files.write(*workspace.at, "a", endless(), by=Author())
    assert taken <= LIMITS.file_bytes + 65_536
    with pytest.raises(FileTooLarge):
        await workspace.files.write(*workspace.at, "a", endless(), by=Author(), announced=LIMITS.file_bytes + 1)
    assert (await workspace.paths(), await workspace.stored()) == ([], [])


async def test_a_workspace_holds_no_more_than_its_quotas(workspace: Workspace) -> None:
    await workspace.write("a", bytes(7_000_000))
    with pytest.raises(NoRoom):
        await workspace.write("b", bytes(7_000_000))
    await workspace.write("a", bytes(8_000_000))  # in place of the old one
    for number in range(LIMITS.session_files - 1):
        await workspace.write(f"small {number}")
    with pytest.raises(NoRoom, match="6 files"):
        await workspace.write("one more")
    await workspace.write("small 0", b"another")
    usage = await workspace.files.usage(*workspace.at)
    assert (usage.files, usage.bytes) == (6, 8_000_000 + 4 * 4 + 7)
    assert len(await workspace.stored()) == 6


async def test_of_many_writers_that_come_at_once_none_exceeds_a_quota(workspace: Workspace) -> None:
    writes = [workspace.write(f"file {number}", bytes(1_900_000)) for number in range(20)]
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(outcome, str) for outcome in done) == 6
    assert all(isinstance(outcome, str | NoRoom) for outcome in done)
    usage = await workspace.files.usage(*workspace.at)
    assert (usage.files, usage.bytes) == (6, 6 * 1_900_000)
    assert len(await workspace.stored()) == 6


async def test_of_many_writers_of_one_file_the_last_one_wins_and_readers_see_whole_versions(
    workspace: Workspace,
) -> None:
    versions = [bytes([number]) * 300_000 for number in range(12)]
    await workspace.write("a", versions[0])

    async def reads() -> None:
        for _ in range(10):
            assert await workspace.read("a") in versions

    await asyncio.gather(*(workspace.write("a", version) for version in versions), reads(), reads())
    assert await workspace.read("a") in versions
    assert len(await workspace.stored()) == 1
    usage = await workspace.files.usage(*workspace.at)
    assert (usage.files, usage.bytes) == (1, 300_000)


async def test_each_of_many_writers_is_told_of_its_own_version(workspace: Workspace) -> None:
    """With the etag of another's version a writer would take it for his own, and write over it without a look."""
    outcomes = [workspace.files.write(*workspace.at, "a", bytes(size), by=Author()) for size in range(1, 21)]
    assert [file.size for file in await asyncio.gather(*outcomes)] == list(range(1, 21))

    async def written_and_deleted(size: int) -> int:
        file = await workspace.files.write(*workspace.at, "b", bytes(size), by=Author())
        with contextlib.suppress(NotFound):
            await workspace.files.delete(*workspace.at, "b", by=Author())
        return file.size

    assert await asyncio.gather(*map(written_and_deleted, range(1, 21))) == list(range(1, 21))


async def test_of_two_that_expect_the_same_version_one_is_told(workspace: Workspace) -> None:
    with pytest.raises(FileChanged):
        await workspace.write("a", expected=uuid4().hex)
    etag = await workspace.write("a", expected=ABSENT)
    with pytest.raises(FileChanged):
        await workspace.write("a", expected=ABSENT)
    outcomes = await asyncio.gather(
        *(workspace.write("a", bytes([number]), expected=etag) for number in range(5)), return_exceptions=True
    )
    assert sum(isinstance(outcome, FileChanged) for outcome in outcomes) == 4
    with pytest.raises(FileChanged):
        await workspace.files.delete(*workspace.at, "a", by=Author(), expected=etag)
    assert len(await workspace.stored()) == 1


async def test_a_call_that_is_made_again_changes_nothing_any_more(workspace: Workspace) -> None:
    call = Author(None, new_id("run"), "run:step:call")
    await workspace.files.write(*workspace.at, "a", b"by the call", by=call)
    await workspace.write("a", b"by another")
    file = await workspace.files.write(*workspace.at, "a", b"by the call", by=call)
    assert file.size == len(b"by another")
    assert await workspace.files.done_before(*workspace.at, "run:step:call")
    assert not await workspace.files.done_before(*workspace.at, "run:step:another")
    deletion = Author(None, call.run_id, "run:step:deletion")
    await workspace.files.delete(*workspace.at, "a", by=deletion)
    await workspace.write("a", b"anew")
    await workspace.files.delete(*workspace.at, "a", by=deletion)
    assert await workspace.read("a") == b"anew"
    assert len(await workspace.stored()) == 1


async def test_a_call_that_failed_may_be_made_again(workspace: Workspace) -> None:
    call = Author(None, new_id("run"), "run:step:call")
    with pytest.raises(FileTooLarge):
        await workspace.files.write(*workspace.at, "a", bytes(LIMITS.file_bytes + 1), by=call)
    with pytest.raises(FileChanged):
        await workspace.files.write(*workspace.at, "a", b"data", by=call, expected=uuid4().hex)
    await workspace.files.write(*workspace.at, "a", b"data", by=call)
    assert await workspace.read("a") == b"data"


@pytest.mark.parametrize("data", [b"some", BIG], ids=["small", "several parts"])
async def test_an_upload_that_breaks_off_leaves_nothing(workspace: Workspace, data: bytes) -> None:
    with pytest.raises(ConnectionAbortedError):
        await workspace.files.write(*workspace.at, "a", broken(data), by=Author())
    assert (await workspace.paths(), await workspace.stored()) == ([], [])


async def test_an_upload_that_is_cancelled_leaves_nothing(workspace: Workspace) -> None:
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        async for piece in pieces(BIG):
            yield piece
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(workspace.files.write(*workspace.at, "a", stalling(), by=Author()))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (await workspace.paths(), await workspace.stored()) == ([], [])


async def test_a_blob_that_got_no_row_is_invisible_and_swept(workspace: Workspace) -> None:
    """As after a crash between the two."""
    blob = f"{workspace.org}/{workspace.session}/{uuid4().hex}"
    await workspace.db.execute("INSERT INTO loose_blobs VALUES ($1, now() + interval '1 hour')", blob)
    await workspace.blobs.write(blob, pieces(b"lost"))
    await workspace.write("a", b"kept")
    await workspace.files.sweep()
    assert len(await workspace.stored()) == 2  # it might still be on its way
    assert await workspace.paths() == ["a"]
    await workspace.db.execute("UPDATE loose_blobs SET due_at = now() WHERE blob = $1", blob)
    assert await workspace.files.sweep() >= 1
    assert len(await workspace.stored()) == 1
    assert await workspace.read("a") == b"kept"
    assert await workspace.loose() == []


async def test_an_upload_that_took_so_long_that_its_bytes_may_be_swept_is_refused(workspace: Workspace) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"slow"
        await workspace.db.execute("UPDATE loose_blobs SET due_at = now() WHERE blob LIKE $1 || '/%'", workspace.org)

    with pytest.raises(Conflict, match="too long"):
        await workspace.files.write(*workspace.at, "a", slow(), by=Author())
    assert (await workspace.paths(), await workspace.stored()) == ([], [])


async def test_files_go_with_their_session_and_blobs_after_them(workspace: Workspace) -> None:
    for path in ("a", "b/c"):
        await workspace.write(path)
    await delete_session(workspace.db, *workspace.at)
    assert await workspace.paths() == []
    assert len(await workspace.loose()) == 2
    await workspace.files.sweep()
    assert (await workspace.stored(), await workspace.loose()) == ([], [])


async def test_sessions_and_orgs_see_nothing_of_each_other(workspace: Workspace) -> None:
    await workspace.write("a")
    other = await create_session(workspace.db, workspace.org)
    for org, session in ((workspace.org, other.id), (new_id("org"), workspace.session)):
        assert await workspace.files.list(org, session) == []
        assert (await workspace.files.usage(org, session)).files == 0
        with pytest.raises(NotFound):
            await workspace.files.read(org, session, "a", 100)
        with pytest.raises(NotFound):
            await workspace.files.delete(org, session, "a", by=Author())
        with pytest.raises(NotFound):
            await workspace.files.move(org, session, "a", "b", by=Author())
    with pytest.raises(NotFound):
        await workspace.files.write(new_id("org"), workspace.session, "b", b"data", by=Author())
    assert await workspace.paths() == ["a"]


OUTSIDE = [
    "",
    "/",
    "/etc/passwd",
    "//etc/passwd",
    "..",
    "../a",
    "a/../../etc/passwd",
    "a/..",
    "./a",
    "a/./b",
    ".",
    "a//b",
    "a/",
    "a\\..\\b",
    "..\\..\\windows",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a\u2028b",
    "\ud800",
    "\ufeffa",
    "gpj.\u202eexe",
    "gpj.\u061cexe",
    "\ufffd",
    "a" * 513,
    "é" * 257,
    "a/" + "é" * 128,
    "/".join("a" * 17),
]


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_that_leads_elsewhere_is_refused(workspace: Workspace, path: str) -> None:
    if workspace.place.url.startswith("s3:"):
        return  # it never gets that far
    files, at = workspace.files, workspace.at
    calls = (
        files.write(*at, path, b"data", by=Author()),
        files.read(*at, path, 100),
        files.stat(*at, path),
        files.delete(*at, path, by=Author()),
        files.move(*at, path, "b", by=Author()),
        files.move(*at, "b", path, by=Author()),
    )
    for call in calls:
        with pytest.raises(InvalidInput):
            await call
    assert await workspace.stored() == []


ODD = ["...", "..a", "a..", ".hidden", "a b", "~", "$HOME", "%2e%2e/a", "C:", "ein Büro.txt", "数据.csv", "-rf", "*"]


async def test_odd_names_are_names_like_others(workspace: Workspace) -> None:
    for path in ODD:
        await workspace.write(path, path.encode())
        assert await workspace.read(path) == path.encode()
        await workspace.files.delete(*workspace.at, path, by=Author())
    assert await workspace.stored() == []


async def test_names_that_look_the_same_are_the_same_but_case_matters(workspace: Workspace) -> None:
    await workspace.write("Bu\u0308ro", b"one")
    await workspace.write("B\u00fcro", b"two")
    await workspace.write("b\u00fcro", b"three")
    assert await workspace.paths() == ["B\u00fcro", "b\u00fcro"]
    assert await workspace.read("Bu\u0308ro") == b"two"


async def test_nothing_on_disk_has_a_name_that_a_caller_chose(workspace: Workspace) -> None:
    await workspace.write("secret/plans.txt")
    [blob] = await workspace.stored()
    assert "secret" not in blob
    assert "plans" not in blob


async def test_more_bytes_than_a_reader_takes_are_refused(workspace: Workspace) -> None:
    await workspace.write("a", b"12345")
    with pytest.raises(FileTooLarge, match="5 bytes"):
        await workspace.files.read(*workspace.at, "a", 4)


@pytest.mark.parametrize("url", ["", "file:///proc/nowhere", "s3://bucket"], ids=["none", "directory", "s3"])
async def test_a_store_that_is_away_is_said_to_be(workspace: Workspace, url: str) -> None:
    if workspace.place.url.startswith("s3:"):
        return
    await workspace.write("a")
    away = Files(workspace.db, Blobs(BlobPlace(url, "http://127.0.0.1:9")), LIMITS)
    with pytest.raises(StoreUnavailable):
        await away.write(*workspace.at, "b", b"data", by=Author())
    with pytest.raises(StoreUnavailable):
        await away.write(*workspace.at, "b", pieces(BIG), by=Author())
    with pytest.raises(StoreUnavailable):
        await away.read(*workspace.at, "a", 100)
    assert await workspace.paths() == ["a"]
    await away.delete(*workspace.at, "a", by=Author())
    assert len(await workspace.loose()) == 3


async def test_retention_sweeps_what_is_left_and_bears_a_store_that_is_away(workspace: Workspace) -> None:
    policies = Policies(None, None, None)
    await workspace.write("a")
    await delete_session(workspace.db, *workspace.at)
    away = Files(workspace.db, Blobs(BlobPlace("")), LIMITS)
    await Retention(workspace.db, policies, files=away).run()
    assert len(await workspace.loose()) == 1
    removed = await Retention(workspace.db, policies, files=workspace.files).run()
    assert removed.blobs >= 1
    assert (await workspace.stored(), await workspace.loose()) == ([], [])
