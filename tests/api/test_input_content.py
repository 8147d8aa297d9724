"""Messages of text and images: what is taken in, and what is refused with the name of the field."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import orjson
import pytest

from api.input_content import MAX_IMAGE_BYTES
from kernel.postgres import Pool
from tests.api.checks import ok, problem

BEGINNINGS = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "gif": b"GIF89a",
    "webp": b"RIFF\x04\x00\x00\x00WEBP",
}


def data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def asking(content: Any, role: str = "user") -> dict[str, Any]:
    return {"input": [{"role": role, "content": content}]}


def image(url: str) -> list[dict[str, Any]]:
    return [{"type": "image", "url": url}]


@pytest.mark.parametrize("kind", BEGINNINGS)
async def test_images_of_each_kind_are_kept_as_they_came(client: httpx.AsyncClient, database: Pool, kind: str) -> None:
    content = [{"type": "text", "text": "What is this?"}, *image(data_url(kind, BEGINNINGS[kind] + bytes(50)))]
    run = ok(await client.post("/v1/runs", json=asking(content)), 202)
    kept = await database.fetchval("SELECT content FROM messages WHERE run_id = $1", run["id"])
    assert orjson.loads(kept) == content


async def test_texts_in_parts_are_taken_from_every_role(client: httpx.AsyncClient) -> None:
    for role in ("user", "assistant", "system"):
        ok(await client.post("/v1/runs", json=asking([{"type": "text", "text": "a"}], role)), 202)


async def test_an_https_address_is_taken_in_and_not_looked_at(client: httpx.AsyncClient) -> None:
    for url in ("https://example.com/cat.png", "https://127.0.0.1:9/cat.png?size=2#x"):
        ok(await client.post("/v1/runs", json=asking(image(url))), 202)


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        (image("data:image/png;base64,iVBOR!!!"), "input.0.content.0.url", "base64"),
        (image("data:image/png;base64,iVBORw0KGg"), "input.0.content.0.url", "base64"),
        (image("data:image/png;base64,"), "input.0.content.0.url", "no png image"),
        (image(data_url("png", b"\xff\xd8\xff\xe0 jpeg")), "input.0.content.0.url", "no png image"),
        (image(data_url("webp", b"RIFF0000AVI ")), "input.0.content.0.url", "no webp image"),
        (image(data_url("svg+xml", b"<svg/>")), "input.0.content.0.url", "must begin with data:image/"),
        (image("data:text/html;base64,PGI+"), "input.0.content.0.url", "must begin with data:image/"),
        (image("data:image/png,raw"), "input.0.content.0.url", "must begin with data:image/"),
        (image("http://example.com/cat.png"), "input.0.content.0.url", "https"),
        (image("https://"), "input.0.content.0.url", "https"),
        (image("https://user:secret@example.com/"), "input.0.content.0.url", "https"),
        (image("https://exa mple.com/"), "input.0.content.0.url", "https"),
        (image("https://example.com/\n"), "input.0.content.0.url", "https"),
        (image("https://example.com:99999/"), "input.0.content.0.url", "https"),
        (image("file:///etc/passwd"), "input.0.content.0.url", "https"),
        (image(""), "input.0.content.0.url", "https"),
        ([{"type": "image"}], "input.0.content.0.url", "required"),
        ([{"type": "image", "url": 5}], "input.0.content.0.url", "string"),
        ([{"type": "text", "text": ""}], "input.0.content.0.text", "1 character"),
        ([{"type": "text", "text": "a", "url": "b"}], "input.0.content.0.url", "not permitted"),
        ([{"type": "audio", "url": "b"}], "input.0.content.0", "must be"),
        (["a"], "input.0.content.0", "must be"),
        ([], "input.0.content", "at least 1"),
        ([{"type": "text", "text": "a"}] * 65, "input.0.content", "at most 64"),
        ({"type": "text", "text": "a"}, "input.0.content", "a text or a list of parts"),
        (None, "input.0.content", "a text or a list of parts"),
    ],
)
async def test_what_is_wrong_with_content_is_said_of_its_field(
    client: httpx.AsyncClient, content: Any, field: str, message: str
) -> None:
    [error] = problem(await client.post("/v1/runs", json=asking(content)), 422)["errors"]
    assert error["field"] == field
    assert message in error["message"]
    assert "secret" not in error["message"]


@pytest.mark.parametrize("role", ["assistant", "system"])
async def test_only_users_send_images(client: httpx.AsyncClient, role: str) -> None:
    content = image(data_url("png", BEGINNINGS["png"]))
    [error] = problem(await client.post("/v1/runs", json=asking(content, role)), 422)["errors"]
    assert error == {"field": "input.0.content", "message": "only messages of the role user may hold images"}


def test_an_image_that_is_too_large_is_refused() -> None:
    from pydantic import ValidationError

    from api.run_request import RunRequest

    for size in (MAX_IMAGE_BYTES + 1, 2 * MAX_IMAGE_BYTES):
        with pytest.raises(ValidationError, match="must not be larger than 5242880 bytes"):
            RunRequest.model_validate(asking(image(data_url("png", BEGINNINGS["png"] + bytes(size - 8)))))
    RunRequest.model_validate(asking(image(data_url("png", BEGINNINGS["png"] + bytes(MAX_IMAGE_BYTES - 8)))))
