"""Documents over HTTP with a worker behind it: upload, recall, replacement, deletion, and who may what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kernel.postgres import Pool
from tests.api.checks import ok, problem
from tests.documents import made
from tests.documents.conftest import Caller, MakeCaller
from tests.stack import Stack
from tests.waiting import eventually

HANDBOOK = """# Handbook of the harbour office

## Arrivals

Every ship announces itself by radio a day before it comes in.

## Fees

A ship pays eleven crowns for each ton of load, in advance.

## Pilots

Pilots board off the northern lighthouse.
"""


async def names(caller: Caller) -> list[str]:
    return [document["name"] for document in ok(await caller.http.get("/v1/documents"))["data"]]


async def test_an_uploaded_document_is_recalled_with_its_source(caller: Caller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    assert (document["version"], document["scope"], document["owner"]) == (1, "org", None)
    ready = await caller.ready(document["id"])
    assert (ready["passages"], ready["served"], ready["facts"]["title"]) == (3, 1, "Handbook of the harbour office")
    [first, *_] = await caller.search("What does a ship pay for each ton of load?")
    assert first["text"] == "A ship pays eleven crowns for each ton of load, in advance."
    assert first["kind"] == "knowledge"
    assert first["source"] == "handbook.md, Fees"
    assert (first["document_id"], first["thread"], first["place"]) == (document["id"], document["id"], 1)
    passages = await caller.passages(document["id"])
    assert [passage["place"] for passage in passages] == [0, 1, 2]
    assert passages[1]["id"] == first["id"]
    assert passages[1]["section"] == "handbook.md > Handbook of the harbour office > Fees"


async def test_a_passage_of_a_pdf_says_its_page(caller: Caller) -> None:
    data = made.pdf([("Lighthouses of the coast", 20)], [("The northern lighthouse is painted in yellow stripes.", 11)])
    document = await caller.upload("coast.pdf", data, media_type="application/pdf")
    await caller.ready(document["id"])
    [first, *_] = await caller.search("In which stripes is the northern lighthouse painted?")
    assert (first["page"], first["source"]) == (2, "coast.pdf, Lighthouses of the coast")


async def test_a_text_is_uploaded_as_json(caller: Caller) -> None:
    body = {"name": "note.txt", "text": "Der Hafenmeister heißt Petersen.", "metadata": {"by": "me"}}
    answer = await caller.http.post("/v1/documents", json=body)
    document = ok(answer, 202)
    assert answer.headers["location"] == f"/v1/documents/{document['id']}"
    ready = await caller.ready(document["id"])
    assert (ready["metadata"], ready["media_type"]) == ({"by": "me"}, "text/plain; charset=utf-8")
    assert [passage["text"] for passage in await caller.passages(document["id"])] == [body["text"]]


async def test_progress_can_be_followed_to_the_end(caller: Caller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    events = await caller.events(document["id"])
    assert [name for name, _ in events][-1] == "ready"
    assert {name for name, _ in events[:-1]} <= {"progress"}
    assert events[-1][1]["passages"] == 3
    assert [name for name, _ in await caller.events(document["id"])] == ["ready"]


async def test_the_stream_ends_when_the_document_is_deleted(stack: Stack, caller: Caller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    # Nobody takes this one in: its stream stays open.
    await stack.database.execute("UPDATE documents SET status = 'queued' WHERE id = $1", document["id"])
    await stack.database.execute(
        "UPDATE jobs SET status = 'queued', finished_at = NULL, not_before = now() + interval '1 day' WHERE key = $1",
        document["id"],
    )
    names = []
    async with caller.http.stream("GET", f"/v1/documents/{document['id']}/events", timeout=30) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
                if len(names) == 1:
                    assert (await caller.http.delete(f"/v1/documents/{document['id']}")).status_code == 204
    assert names == ["progress", "deleted"]


async def test_the_same_bytes_again_change_nothing(caller: Caller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    again = await caller.upload("handbook.md", HANDBOOK.encode(), status=200)
    assert (again["id"], again["version"], again["status"]) == (document["id"], 1, "ready")
    assert await names(caller) == ["handbook.md"]


@pytest.mark.parametrize("how", ["POST", "PUT"])
async def test_a_new_version_replaces_only_what_changed(caller: Caller, how: str) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    before = {passage["text"]: passage for passage in await caller.passages(document["id"])}
    text = HANDBOOK.replace("eleven crowns", "twelve crowns").replace(
        "## Arrivals", "## Hours\n\nThe office opens at six.\n\n## Arrivals"
    )
    if how == "POST":
        await caller.upload("handbook.md", text.encode())
    else:
        ok(await caller.http.put(f"/v1/documents/{document['id']}", json={"text": text}), 202)
    ready = await caller.ready(document["id"])
    assert (ready["version"], ready["served"], ready["passages"]) == (2, 2, 4)
    after = await caller.passages(document["id"])
    assert [passage["text"].split()[-1] for passage in after] == ["six.", "in.", "advance.", "lighthouse."]
    assert [passage["place"] for passage in after] == [0, 1, 2, 3]
    kept = [passage for passage in after if passage["text"] in before]
    assert len(kept) == 2
    assert all(before[passage["text"]]["id"] == passage["id"] for passage in kept)
    assert all("eleven" not in item["text"] for item in await caller.search("crowns for each ton of load"))
    content = await caller.http.get(f"/v1/documents/{document['id']}/content")
    assert content.content == text.encode()


async def test_two_documents_keep_a_passage_that_they_have_in_common(caller: Caller) -> None:
    one = await caller.upload("one.txt", b"All rights are reserved by the harbour office.")
    two = await caller.upload("two.txt", b"All rights are reserved by the harbour office.")
    for document in (one, two):
        await caller.ready(document["id"])
    assert (await caller.http.delete(f"/v1/documents/{one['id']}")).status_code == 204
    assert len(await caller.passages(two["id"])) == 1
    assert [item["document_id"] for item in await caller.search("rights reserved harbour office")] == [two["id"]]


async def test_a_deleted_document_leaves_nothing(caller: Caller, rows: Pool, stack: Stack) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    [blob] = await rows.fetch("SELECT blob FROM document_versions WHERE document_id = $1", document["id"])
    assert (await caller.http.delete(f"/v1/documents/{document['id']}")).status_code == 204
    for path in ("", "/content", "/passages", "/events"):
        problem(await caller.http.get(f"/v1/documents/{document['id']}{path}"), 404)
    problem(await caller.http.delete(f"/v1/documents/{document['id']}"), 404)
    assert await caller.search("What does a ship pay for each ton of load?") == []
    assert await names(caller) == []

    async def gone() -> bool:
        return not await rows.fetchval("SELECT EXISTS (SELECT FROM documents WHERE id = $1)", document["id"])

    await eventually(gone)
    assert await rows.fetchval("SELECT count(*) FROM memories WHERE document_id = $1", document["id"]) == 0
    assert await rows.fetchval("SELECT due_at <= now() FROM loose_blobs WHERE blob = $1", blob["blob"])
    assert not await rows.fetchval(
        "SELECT EXISTS (SELECT FROM jobs WHERE key = $1 AND finished_at IS NULL)", document["id"]
    )
    again = await caller.upload("handbook.md", HANDBOOK.encode())
    assert again["id"] != document["id"]
    assert (await caller.ready(again["id"]))["passages"] == 3


async def test_what_cannot_be_read_fails_with_the_reason_and_leaves_nothing(caller: Caller, rows: Pool) -> None:
    document = await caller.upload("secret.pdf", made.encrypted(made.pdf([("secret", 11)]), "password"))
    failed = await caller.settled(document["id"])
    assert (failed["status"], failed["served"], failed["passages"]) == ("failed", None, 0)
    assert failed["error"]["code"] == "encrypted"
    assert "password" in failed["error"]["message"]
    assert failed["error"]["suggestions"]
    assert [name for name, _ in await caller.events(document["id"])] == ["failed"]
    problem(await caller.http.get(f"/v1/documents/{document['id']}/content"), 404)
    assert await rows.fetchval("SELECT count(*) FROM document_versions WHERE document_id = $1", document["id"]) == 0
    assert await rows.fetchval("SELECT count(*) FROM memories WHERE document_id = $1", document["id"]) == 0
    # The same name with bytes that can be read.
    better = await caller.upload("secret.pdf", made.pdf([("not secret any more", 11)]))
    assert better["id"] == document["id"]
    assert (await caller.ready(document["id"]))["passages"] == 1


async def test_a_new_version_that_cannot_be_read_leaves_the_one_before(caller: Caller) -> None:
    good = made.pdf([("The tide is highest at noon.", 11)])
    document = await caller.upload("tides.pdf", good)
    await caller.ready(document["id"])
    await caller.upload("tides.pdf", made.encrypted(good, "password"))
    failed = await caller.settled(document["id"])
    assert (failed["status"], failed["version"], failed["served"], failed["passages"]) == ("failed", 2, 1, 1)
    assert [item["text"] for item in await caller.search("When is the tide highest?")] == [
        "The tide is highest at noon."
    ]
    assert (await caller.http.get(f"/v1/documents/{document['id']}/content")).content == good


@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("a.txt", b"", 422, "empty"),
        ("a.txt", bytes(5_000), 415, "binary"),
        ("a.xlsx", b"PK\x03\x04", 415, "unsupported_type"),
        ("a.pdf", b"no pdf", 415, "wrong_type"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), 422, "encrypted"),
        ("a/b.txt", b"text", 422, "invalid_input"),
        ("../a.txt", b"text", 422, "invalid_input"),
    ],
)
async def test_what_is_seen_to_be_wrong_at_once_is_refused_at_once(
    caller: Caller, rows: Pool, name: str, data: bytes, status: int, code: str
) -> None:
    answer = await caller.http.post("/v1/documents", params={"name": name}, content=data)
    assert problem(answer, status)["code"] == code
    assert await names(caller) == []


async def test_an_upload_needs_a_name(caller: Caller) -> None:
    problem(await caller.http.post("/v1/documents", content=b"text"), 422, "name")


async def test_downloads_are_attachments_and_come_in_parts(caller: Caller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    path = f"/v1/documents/{document['id']}/content"
    whole = await caller.http.get(path)
    assert whole.content == HANDBOOK.encode()
    assert whole.headers["content-disposition"] == 'attachment; filename="handbook.md"'
    part = await caller.http.get(path, headers={"Range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, HANDBOOK.encode()[2:10])
    assert (await caller.http.get(path, headers={"If-None-Match": whole.headers["etag"]})).status_code == 304


async def test_another_org_sees_nothing(caller: Caller, make_caller: MakeCaller) -> None:
    document = await caller.upload("handbook.md", HANDBOOK.encode())
    await caller.ready(document["id"])
    stranger = await make_caller()
    path = f"/v1/documents/{document['id']}"
    for below in ("", "/content", "/passages", "/events"):
        problem(await stranger.http.get(path + below), 404)
    problem(await stranger.http.put(path, content=b"mine now"), 404)
    problem(await stranger.http.delete(path), 404)
    assert await names(stranger) == []
    assert await stranger.search("What does a ship pay for each ton of load?") == []
    own = await stranger.upload("handbook.md", HANDBOOK.encode())
    assert own["id"] != document["id"]


async def test_users_have_documents_of_their_own_and_read_those_of_the_org(
    caller: Caller, make_caller: MakeCaller
) -> None:
    ann = await make_caller(caller.org_id, user_id="ann")
    bob = await make_caller(caller.org_id, user_id="bob")
    shared = await caller.upload("handbook.md", HANDBOOK.encode())
    hers = await ann.upload("diary.txt", b"The secret of the yellow submarine is in the cellar.")
    assert (hers["scope"], hers["owner"]) == ("user", "ann")
    for document in (shared, hers):
        await caller.ready(document["id"])
    problem(await bob.http.get(f"/v1/documents/{hers['id']}"), 404)
    problem(await bob.http.put(f"/v1/documents/{hers['id']}", content=b"mine now"), 404)
    problem(await bob.http.delete(f"/v1/documents/{hers['id']}"), 404)
    assert await bob.search("secret of the yellow submarine") == []
    assert await names(bob) == ["handbook.md"]
    assert await names(ann) == ["diary.txt", "handbook.md"]
    assert [item["document_id"] for item in await ann.search("secret of the yellow submarine")] == [hers["id"]]
    # The org's are read by all and changed by admins.
    ok(await bob.http.get(f"/v1/documents/{shared['id']}"))
    problem(await bob.http.put(f"/v1/documents/{shared['id']}", content=b"mine now"), 403)
    problem(await bob.http.delete(f"/v1/documents/{shared['id']}"), 403)
    problem(await bob.http.post("/v1/documents", params={"name": "x.txt", "scope": "org"}, content=b"text"), 403)
    problem(
        await bob.http.post("/v1/documents", params={"name": "x.txt", "scope": "user", "user_id": "ann"}, content=b"t"),
        403,
    )
    admin = await make_caller(caller.org_id, user_id="root", scopes=("admin",))
    assert (await admin.http.delete(f"/v1/documents/{shared['id']}")).status_code == 204


async def test_documents_of_a_session_are_its_own_and_go_with_it(caller: Caller, rows: Pool) -> None:
    session = ok(await caller.http.post("/v1/sessions", json={}), 201)
    other = ok(await caller.http.post("/v1/sessions", json={}), 201)
    document = await caller.upload(
        "plan.txt", b"The plan is to sail at dawn.", scope="session", session_id=session["id"]
    )
    await caller.ready(document["id"])
    assert (document["scope"], document["owner"]) == ("session", session["id"])
    assert len(await caller.search("the plan to sail at dawn", session_id=session["id"])) == 1
    assert await caller.search("the plan to sail at dawn", session_id=other["id"]) == []
    assert (await caller.http.delete(f"/v1/sessions/{session['id']}")).status_code == 204
    problem(await caller.http.get(f"/v1/documents/{document['id']}"), 404)


async def test_lists_are_paged_and_filtered(caller: Caller) -> None:
    for number in range(5):
        of: dict[str, Any] = {"user_id": "ann"} if number == 3 else {}
        await caller.upload(f"{number}.txt", b"text %d" % number, **of)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params: dict[str, Any] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = ok(await caller.http.get("/v1/documents", params=params))
        seen += [document["name"] for document in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["4.txt", "3.txt", "2.txt", "1.txt", "0.txt"]
    users = ok(await caller.http.get("/v1/documents", params={"scope": "user"}))["data"]
    assert [document["name"] for document in users] == ["3.txt"]


async def test_uploads_at_the_same_time_make_one_document(caller: Caller) -> None:
    answers = await asyncio.gather(
        *(
            caller.http.post("/v1/documents", params={"name": "a.txt"}, content=b"version %d of the text" % number)
            for number in range(6)
        )
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    ready = await caller.ready(answers[0].json()["id"])
    assert (ready["version"], ready["served"]) == (6, 6)
    [passage] = await caller.passages(ready["id"])
    content = (await caller.http.get(f"/v1/documents/{ready['id']}/content")).text
    assert passage["text"] == content


async def test_blobs_of_a_refused_upload_are_not_kept(stack: Stack, caller: Caller) -> None:
    folder = Path(stack._data.files)

    def count() -> int:
        return sum(1 for path in (folder / caller.org_id).rglob("*") if path.is_file())

    problem(await caller.http.post("/v1/documents", params={"name": "a.txt"}, content=bytes(5_000)), 415)
    assert await asyncio.to_thread(count) == 0
