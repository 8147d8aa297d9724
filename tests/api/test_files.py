"""Uploads, lists and downloads of a session's files over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from kernel.postgres import Pool
from kernel.settings import Settings
from tests.api.checks import MISSING, ok, problem
from tests.api.serving import serving


@pytest.fixture
async def files(client: httpx.AsyncClient) -> str:
    """Where a new session has its files."""
    session = ok(await client.post("/v1/sessions", json={}), 201)
    return f"/v1/sessions/{session['id']}/files"


@pytest.fixture
async def small(settings: Settings, api_key: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An API with small quotas."""
    own = settings.model_copy(
        update={
            "files_url": tmp_path.as_uri(),
            "files_max_bytes": 3_000_000,
            "files_session_bytes": 4_000_000,
            "files_per_session": 3,
        }
    )
    async with (
        serving(own) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client,
    ):
        yield client


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)


async def test_a_file_is_uploaded_listed_downloaded_and_deleted(client: httpx.AsyncClient, files: str) -> None:
    data = bytes(range(256)) * 30_000  # more than a body may have elsewhere
    answer = await client.put(
        f"{files}/data/may.csv", content=data, headers={"Content-Type": "text/csv; charset=utf-8"}
    )
    file = ok(answer, 201)
    assert (file["path"], file["size"], file["content_type"]) == ("data/may.csv", len(data), "text/csv; charset=utf-8")
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert answer.headers["etag"] == f'"{file["etag"]}"'
    assert ok(await client.get(files))["data"] == [file]
    got = await client.get(f"{files}/data/may.csv")
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["content-length"] == str(len(data))
    assert got.headers["content-type"] == "text/csv; charset=utf-8"
    assert got.headers["content-disposition"] == 'attachment; filename="may.csv"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["etag"] == answer.headers["etag"]
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert (await client.delete(f"{files}/data/may.csv")).status_code == 204
    problem(await client.get(f"{files}/data/may.csv"), 404)
    problem(await client.delete(f"{files}/data/may.csv"), 404)
    assert ok(await client.get(files))["data"] == []


async def test_a_file_of_unknown_length_and_type_is_taken(client: httpx.AsyncClient, files: str) -> None:
    file = ok(await client.put(f"{files}/a.json", content=pieces(10, 0, 20)), 201)
    assert (file["size"], file["content_type"]) == (30, "application/json")
    assert ok(await client.put(f"{files}/empty", content=b""), 201)["size"] == 0
    got = await client.get(f"{files}/empty")
    assert (got.content, got.headers["content-length"]) == (b"", "0")
    replaced = ok(await client.put(f"{files}/a.json", content=b"{}"))
    assert replaced["etag"] != file["etag"]


async def test_a_list_comes_in_pages_and_by_prefix(client: httpx.AsyncClient, files: str) -> None:
    paths = ["a", "b/1", "b/2", "数据/" + "ж" * 120 + "/" + "ж" * 120]
    for path in paths:
        ok(await client.put(f"{files}/{path}", content=b"x"), 201)
    found: list[str] = []
    query: dict[str, Any] = {"limit": 1}
    while query.get("cursor", "") is not None:
        page = ok(await client.get(files, params=query))
        found += [file["path"] for file in page["data"]]
        query["cursor"] = page["next_cursor"]
    assert found == paths
    assert [file["path"] for file in ok(await client.get(files, params={"prefix": "b/"}))["data"]] == ["b/1", "b/2"]
    problem(await client.get(files, params={"prefix": "../"}), 422, "prefix")
    problem(await client.get(files, params={"cursor": "nonsense"}), 422, "cursor")


async def test_a_download_is_conditional(client: httpx.AsyncClient, files: str) -> None:
    etag = (await client.put(f"{files}/a", content=b"0123456789")).headers["etag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        got = await client.get(f"{files}/a", headers={"If-None-Match": given})
        assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", etag)
    assert (await client.get(f"{files}/a", headers={"If-None-Match": '"other"'})).status_code == 200
    head = await client.head(f"{files}/a")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")


@pytest.mark.parametrize(
    ("given", "status", "content", "shown"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-999", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=-999", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_a_part_is_downloaded(
    client: httpx.AsyncClient, files: str, given: str, status: int, content: bytes | None, shown: str | None
) -> None:
    etag = (await client.put(f"{files}/a", content=b"0123456789")).headers["etag"]
    got = await client.get(f"{files}/a", headers={"Range": given})
    assert (got.status_code, got.headers.get("content-range")) == (status, shown)
    assert content is None or got.content == content
    assert (await client.get(f"{files}/a", headers={"Range": given, "If-Range": '"old"'})).status_code == 200
    if status == 206:
        assert (await client.get(f"{files}/a", headers={"Range": given, "If-Range": etag})).status_code == 206


async def test_an_upload_is_conditional(client: httpx.AsyncClient, files: str) -> None:
    problem(await client.put(f"{files}/a", content=b"x", headers={"If-Match": '"some"'}), 412)
    etag = (await client.put(f"{files}/a", content=b"x", headers={"If-None-Match": "*"})).headers["etag"]
    problem(await client.put(f"{files}/a", content=b"y", headers={"If-None-Match": "*"}), 412)
    problem(await client.put(f"{files}/a", content=b"y", headers={"If-None-Match": '"x"'}), 422, "If-None-Match")
    problem(await client.put(f"{files}/a", content=b"y", headers={"If-Match": '"other"'}), 412)
    problem(await client.put(f"{files}/a", content=b"y", headers={"If-Match": f"W/{etag}"}), 412)
    assert (await client.get(f"{files}/a")).content == b"x"
    second = await client.put(f"{files}/a", content=b"y", headers={"If-Match": f'"other", {etag}'})
    ok(second)
    problem(await client.delete(f"{files}/a", headers={"If-Match": etag}), 412)
    assert (await client.delete(f"{files}/a", headers={"If-Match": second.headers["etag"]})).status_code == 204


async def test_another_orgs_files_are_not_there(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, files: str
) -> None:
    ok(await client.put(f"{files}/a", content=b"secret"), 201)
    for answer in (
        await stranger.get(files),
        await stranger.get(f"{files}/a"),
        await stranger.put(f"{files}/a", content=b"mine"),
        await stranger.put(f"{files}/b", content=b"mine"),
        await stranger.delete(f"{files}/a"),
        await client.get(f"/v1/sessions/{MISSING['ses']}/files"),
        await client.put(f"/v1/sessions/{MISSING['ses']}/files/a", content=b"x"),
    ):
        problem(answer, 404)
    assert (await client.get(f"{files}/a")).content == b"secret"
    assert [file["path"] for file in ok(await client.get(files))["data"]] == ["a"]


async def test_nobody_uploads_without_a_credential(nobody: httpx.AsyncClient, files: str) -> None:
    problem(await nobody.put(f"{files}/a", content=b"x"), 401)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "%2Fetc%2Fpasswd",
        "..%2f..%2fetc%2fpasswd",
        "a%2f..%2fb",
        "%2e%2e%2fa",
        "a%2f%2e",
        "a//b",
        "a/",
        "a%5c..%5cb",
        "a%0ab",
        "a%00b",
        "%ff%fe",
        "%ed%a0%80",
        "a%E2%80%AEb",
        "x" * 513,
        "a/" * 20 + "a",
    ],
)
async def test_a_path_that_leads_elsewhere_is_refused(client: httpx.AsyncClient, files: str, path: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        request = client.build_request(method, f"{files}/x", content=b"x" if method == "PUT" else None)
        request.url = request.url.copy_with(raw_path=f"{files}/{path}".encode())
        problem(await client.send(request), 404 if path == "a%0ab" else 422)
    assert ok(await client.get(files))["data"] == []


async def test_names_are_kept_and_sent_safely(client: httpx.AsyncClient, files: str) -> None:
    names = {
        "a b.txt": 'attachment; filename="a b.txt"',
        'q"uote;x.txt': "attachment; filename=\"q_uote_x.txt\"; filename*=UTF-8''q%22uote%3Bx.txt",
        "дом.txt": "attachment; filename=\"___.txt\"; filename*=UTF-8''%D0%B4%D0%BE%D0%BC.txt",
        "%2e.txt": "attachment; filename=\"_2e.txt\"; filename*=UTF-8''%252e.txt",
    }
    for name, disposition in names.items():
        path = (
            f"{files}/{httpx.URL('http://x').copy_with(path='/' + name).raw_path.decode()[1:].replace('%2e', '%252e')}"
        )
        file = ok(await client.put(path, content=b"x"), 201)
        got = await client.get(path)
        assert got.headers["content-disposition"] == disposition
        assert file["path"] in names


@pytest.mark.parametrize("given", ["nonsense", "text/", "a/b" * 100, "text/plain; \xff"])
async def test_a_content_type_that_is_none_is_refused(client: httpx.AsyncClient, files: str, given: str) -> None:
    headers = [(b"content-type", given.encode("latin-1"))]
    problem(await client.put(f"{files}/a", content=b"x", headers=headers), 422, "Content-Type")


async def test_what_is_too_large_is_refused_announced_or_not(small: httpx.AsyncClient) -> None:
    session = ok(await small.post("/v1/sessions", json={}), 201)
    files = f"/v1/sessions/{session['id']}/files"
    assert problem(await small.put(f"{files}/a", content=bytes(3_000_001)), 413)["code"] == "file_too_large"
    over = problem(await small.put(f"{files}/a", content=pieces(*[100_000] * 40)), 413)
    assert over["code"] == "file_too_large"
    assert ok(await small.get(files))["data"] == []
    ok(await small.put(f"{files}/a", content=bytes(2_900_000)), 201)
    assert problem(await small.put(f"{files}/b", content=bytes(2_000_000)), 413)["code"] == "workspace_full"
    assert problem(await small.put(f"{files}/b", content=pieces(*[100_000] * 20)), 413)["code"] == "workspace_full"
    ok(await small.put(f"{files}/a", content=bytes(3_000_000)))
    for name in ("b", "c"):
        ok(await small.put(f"{files}/{name}", content=b"x"), 201)
    assert problem(await small.put(f"{files}/d", content=b"x"), 413)["code"] == "workspace_full"
    assert len(ok(await small.get(files))["data"]) == 3


async def test_a_path_can_not_be_a_file_and_a_folder(client: httpx.AsyncClient, files: str) -> None:
    ok(await client.put(f"{files}/a/b", content=b"x"), 201)
    problem(await client.put(f"{files}/a", content=b"x"), 409)
    problem(await client.put(f"{files}/a/b/c", content=b"x"), 409)


async def test_an_upload_that_breaks_off_leaves_nothing(
    client: httpx.AsyncClient, database: Pool, url: str, files: str, api_key: str
) -> None:
    where = urlsplit(url)
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"PUT {files}/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key}\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + bytes(500_000))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    ok(await client.put(f"{files}/b", content=b"x"), 201)
    assert [file["path"] for file in ok(await client.get(files))["data"]] == ["b"]


async def test_a_store_that_is_away_is_a_503(settings: Settings, api_key: str) -> None:
    for place in ({"files_url": "s3://bucket", "files_s3_endpoint": "http://127.0.0.1:9"}, {"files_url": ""}):
        async with (
            serving(settings.model_copy(update=place)) as url,
            httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client,
        ):
            session = ok(await client.post("/v1/sessions", json={}), 201)
            problem(await client.put(f"/v1/sessions/{session['id']}/files/a", content=b"x"), 503)
            assert ok(await client.get(f"/v1/sessions/{session['id']}/files"))["data"] == []


async def test_files_go_with_their_session(client: httpx.AsyncClient, files: str) -> None:
    ok(await client.put(f"{files}/a", content=b"x"), 201)
    assert (await client.delete(files.removesuffix("/files"))).status_code == 204
    problem(await client.get(files), 404)
    problem(await client.get(f"{files}/a"), 404)


async def test_an_api_process_that_serves_no_files_has_not_imported_what_serves_them() -> None:
    code = "import sys, api.app; print({'obstore', 'duckdb', 'boto3', 'moto', 'sqlglot'} & set(sys.modules))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().strip() == "set()"


@pytest.mark.parametrize("content_type", ["a/b" + " " * 500 + ";", "x" * 80 + "/" + "y" * 80 + ";" + "z" * 100])
async def test_a_type_that_is_too_long_to_keep_is_refused(
    client: httpx.AsyncClient, files: str, content_type: str
) -> None:
    answer = await client.put(f"{files}/a", content=b"x", headers={"Content-Type": content_type})
    assert "Content-Type" in str(problem(answer, 422)["errors"])
    problem(await client.get(f"{files}/a"), 404)
