"""Skills of an org: made, changed, versioned, imported, and nobody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.api.checks import ok, problem

MISSING = f"skl_{'0' * 32}"

WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Says what the weather is. Use it for questions about weather.",
    "instructions": "# Weather\n\nAsk for the city first.",
    "tools": [
        "http_fetch",
        {
            "type": "http",
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameter_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "execution_config": {"url": "https://weather.example/{city}"},
        },
    ],
    "metadata": {"owner": "team sky"},
    "references": {"references/cities.md": "Bergen, Oslo", "units.txt": "°C"},
}

SKILL_MD = """---
name: pdf-forms
description: Fills PDF forms. Use it when a form has to be filled.
license: MIT
compatibility: Needs access to the files of the session
metadata:
  version: 1.0
allowed-tools: Bash(git:*) Read read_file
---
# Forms

First read [the guide](references/guide.md).
"""


async def test_a_skill_is_given_back_as_it_was_made(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/skills", json=WEATHER)
    made = ok(answer, 201)
    assert made["id"].startswith("skl_")
    assert made["version"] == 1
    assert {name: made[name] for name in WEATHER if name != "tools"} == {
        name: value for name, value in WEATHER.items() if name != "tools"
    }
    assert made["tools"][0] == "http_fetch"
    assert made["tools"][1].items() >= {"name": "get_weather", "type": "http"}.items()
    assert (made["license"], made["compatibility"], made["allowed_tools"]) == (None, None, [])
    assert ok(await client.get(answer.headers["location"])) == made


async def test_a_list_names_tools_and_texts_and_holds_neither(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    other = ok(await client.post("/v1/skills", json={"name": "other", "description": "Another."}), 201)
    first = ok(await client.get("/v1/skills", params={"limit": 1}))
    assert [skill["id"] for skill in first["data"]] == [other["id"]]
    [listed] = ok(await client.get("/v1/skills", params={"cursor": first["next_cursor"]}))["data"]
    assert listed == {
        "id": made["id"],
        "name": "weather",
        "version": 1,
        "description": WEATHER["description"],
        "tools": ["http_fetch", "get_weather"],
        "references": ["references/cities.md", "units.txt"],
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }


async def test_a_change_makes_a_version_and_keeps_the_old_one(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    path = f"/v1/skills/{made['id']}"
    changed = ok(await client.patch(path, json={"instructions": "Guess.", "references": {"a.md": "b"}}))
    assert (changed["version"], changed["instructions"], changed["references"]) == (2, "Guess.", {"a.md": "b"})
    assert changed["tools"] == made["tools"]
    assert ok(await client.get(path)) == changed
    assert ok(await client.get(f"{path}/versions/1"))["instructions"] == WEATHER["instructions"]
    assert [skill["version"] for skill in ok(await client.get(f"{path}/versions"))["data"]] == [2, 1]
    rest = ok(await client.get(f"{path}/versions", params={"limit": 1}))
    rest = ok(await client.get(f"{path}/versions", params={"limit": 1, "cursor": rest["next_cursor"]}))
    assert ([skill["version"] for skill in rest["data"]], rest["next_cursor"]) == ([1], None)
    problem(await client.get(f"{path}/versions/3"), 404)


async def test_a_change_that_changes_nothing_makes_no_version(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    path = f"/v1/skills/{made['id']}"
    assert ok(await client.patch(path, json={"tools": WEATHER["tools"]})) == made
    problem(await client.patch(path, json={}), 422, "body")
    problem(await client.patch(path, json={"name": "other"}), 422, "name")


async def test_changes_at_the_same_time_all_count(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    path = f"/v1/skills/{made['id']}"
    answers = await asyncio.gather(*(client.patch(path, json={"description": f"d{n}"}) for n in range(8)))
    assert sorted(ok(answer)["version"] for answer in answers) == list(range(2, 10))


async def test_a_name_is_given_once_among_the_living(client: httpx.AsyncClient) -> None:
    first = ok(await client.post("/v1/skills", json=WEATHER), 201)
    assert problem(await client.post("/v1/skills", json=WEATHER), 409)["suggestions"]
    assert (await client.delete(f"/v1/skills/{first['id']}")).status_code == 204
    ok(await client.post("/v1/skills", json=WEATHER), 201)


async def test_a_deleted_skill_is_gone_but_its_versions_stay(client: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    path = f"/v1/skills/{made['id']}"
    assert (await client.delete(path)).status_code == 204
    problem(await client.get(path), 404)
    problem(await client.delete(path), 404)
    problem(await client.patch(path, json={"description": "x"}), 404)
    ok(await client.get(f"{path}/versions/1"))
    assert ok(await client.get("/v1/skills"))["data"] == []


async def test_another_orgs_skills_do_not_exist(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    made = ok(await client.post("/v1/skills", json=WEATHER), 201)
    path = f"/v1/skills/{made['id']}"
    for answer in (
        await stranger.get(path),
        await stranger.patch(path, json={"description": "mine"}),
        await stranger.delete(path),
        await stranger.get(f"{path}/versions"),
        await stranger.get(f"{path}/versions/1"),
    ):
        problem(answer, 404)
    assert ok(await stranger.get("/v1/skills"))["data"] == []
    ok(await stranger.post("/v1/skills", json=WEATHER), 201)
    assert ok(await client.get(path)) == made


async def test_a_skill_is_made_once_per_idempotency_key(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "weather"}
    first = ok(await client.post("/v1/skills", json=WEATHER, headers=headers), 201)
    again = await client.post("/v1/skills", json=WEATHER, headers=headers)
    assert (ok(again, 201), again.headers["idempotency-replayed"]) == (first, "true")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": None}, "name"),
        ({"name": "pdf-forms"}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"description": ""}, "description"),
        ({"description": "  "}, "description"),
        ({"description": "d" * 1_025}, "description"),
        ({"instructions": "i" * 65_537}, "instructions"),
        ({"tools": ["Shell!"]}, "tools.0"),
        ({"tools": ["a", "a"]}, "tools"),
        ({"tools": [{"type": "http", "name": "x", "description": "x", "execution_config": {"url": "x"}}]}, None),
        ({"allowed_tools": ["Bash(git:*)"]}, "allowed_tools.0"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"references": {"../up.md": ""}}, "references.../up.md"),
        ({"references": {"/etc/passwd": ""}}, "references./etc/passwd"),
        ({"references": {"a//b": ""}}, "references.a//b"),
        ({"references": {".hidden": ""}}, "references..hidden"),
        ({"references": {"a\\b": ""}}, "references.a\\b"),
        ({"references": {"a": "x" * 262_145}}, "references.a"),
        ({"references": {f"{number}.md": "" for number in range(65)}}, "references"),
        ({"secret": 1}, "secret"),
    ],
)
async def test_a_wrong_skill_is_refused_by_field(
    client: httpx.AsyncClient, change: dict[str, Any], field: str | None
) -> None:
    answer = await client.post("/v1/skills", json=WEATHER | change)
    problem(answer, 422, *([field] if field else []))


# import


async def test_a_folder_of_the_open_format_becomes_a_skill(client: httpx.AsyncClient) -> None:
    files = {"SKILL.md": SKILL_MD, "references/guide.md": "Ask.", "scripts/fill.py": "print()"}
    made = ok(await client.post("/v1/skills/import", json={"files": files, "tools": ["http_fetch"]}), 201)
    assert made["name"] == "pdf_forms"
    assert made["description"] == "Fills PDF forms. Use it when a form has to be filled."
    assert made["instructions"] == "# Forms\n\nFirst read [the guide](references/guide.md)."
    assert (made["license"], made["metadata"]) == ("MIT", {"version": "1.0"})
    assert made["compatibility"] == "Needs access to the files of the session"
    assert made["allowed_tools"] == ["Read", "read_file"]
    assert made["tools"] == ["http_fetch"]
    assert made["references"] == {"references/guide.md": "Ask.", "scripts/fill.py": "print()"}


async def test_an_import_makes_a_version_only_where_that_is_asked_for(client: httpx.AsyncClient) -> None:
    first = ok(await client.post("/v1/skills/import", json={"files": {"SKILL.md": SKILL_MD}}), 201)
    changed = {"SKILL.md": SKILL_MD.replace("# Forms", "# All forms")}
    problem(await client.post("/v1/skills/import", json={"files": changed}), 409)
    second = ok(await client.post("/v1/skills/import", json={"files": changed, "update": True}), 201)
    assert (second["id"], second["version"]) == (first["id"], 2)
    assert second["instructions"].startswith("# All forms")


@pytest.mark.parametrize(
    ("files", "field", "words"),
    [
        ({"README.md": "x"}, "files.SKILL.md", "is missing"),
        ({"SKILL.md": "no front matter"}, "files.SKILL.md", "front matter"),
        ({"SKILL.md": "---\nname: Big\n---\n"}, "files.SKILL.md", "lowercase"),
        ({"SKILL.md": "---\nname: a\n---\n"}, "files.SKILL.md", "description: is missing"),
        ({"SKILL.md": SKILL_MD, "../x": "x"}, "files.../x", "not a path"),
        ({}, "files", ""),
    ],
)
async def test_a_wrong_folder_is_refused_by_field(
    client: httpx.AsyncClient, files: dict[str, str], field: str, words: str
) -> None:
    body = problem(await client.post("/v1/skills/import", json={"files": files}), 422, field)
    assert any(words in error["message"] for error in body["errors"])
