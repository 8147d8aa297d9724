"""Skills of a deployment: built in, from folders, found by name, opened by the model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import BadSettings
from orchestrator.kit import KitScope, Outfitter
from orchestrator.skills.builtin import builtin_skills
from orchestrator.skills.folders import load_folders
from orchestrator.skills.open_skill import PAGE, OpenSkill
from orchestrator.skills.registry import SkillRegistry
from orchestrator.skills.skill import Skill, UnknownSkill
from orchestrator.tools.python import PythonTool
from orchestrator.tools.tool import NoSecrets, ToolContext
from orchestrator.tools.toolbox import Toolbox, ToolOutcome

CONTEXT = ToolContext("org_1", None, None, "ses_1", "run_1", "call_1", "run_1:2:call_1")


def write(root: Path, folder: str, files: dict[str, str | bytes] | None = None, **fields: str) -> Path:
    """A skill's folder."""
    head = {"name": folder, "description": f"What {folder} is for."} | fields
    lines = "".join(f"{field.replace('_', '-')}: {value}\n" for field, value in head.items())
    given: dict[str, str | bytes] = {"SKILL.md": f"---\n{lines}---\n# {folder}\n\nDo it well.\n"}
    for path, text in (given | (files or {})).items():
        place = root / folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
    return root / folder


async def loaded(root: Path, *tools: str) -> list[Skill]:
    """As the worker does before its event loop has anything else to do."""
    return await asyncio.to_thread(load_folders, root, tools)


async def opened(skills: Sequence[Skill], **arguments: Any) -> ToolOutcome:
    return await Toolbox([OpenSkill(skills)]).call(OpenSkill.name, arguments, CONTEXT, allowed=[OpenSkill.name])


# folders


async def test_a_folder_becomes_a_skill_whose_texts_are_opened_when_needed(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "references/guide.md": "The guide.",
        "scripts/run.py": "print()",
        "assets/logo.png": b"\x89PNG\xff",
        "assets/nul.txt": b"a\x00b",
        ".git/config": "hidden",
        "references/long.md": "x" * 262_145,
    }
    write(tmp_path, "pdf-forms", files, compatibility="Needs paper", allowed_tools="Bash(git:*) python Read")
    (tmp_path / "README.md").write_text("not a skill")
    (tmp_path / ".hidden").mkdir()
    [skill] = await loaded(tmp_path, "python", "http_fetch")
    assert (skill.name, skill.description, skill.tools) == ("pdf_forms", "What pdf-forms is for.", ["python"])
    body = await opened([skill], name="pdf_forms")
    assert body.result == (
        "# pdf-forms\n\nDo it well.\n\n---\nNeeds: Needs paper\n"
        "Files that open_skill gives: references/guide.md, scripts/run.py"
    )
    for name in ("pdf_forms", "pdf-forms"):
        assert (await opened([skill], name=name, file="./references/guide.md")).result == "The guide."
    assert (await opened([skill], name="pdf_forms", file="SKILL.md")).result == body.result


@pytest.mark.parametrize(
    "path", ["../SKILL.md", "/etc/passwd", "references/../SKILL.md", ".git/config", "assets/logo.png"]
)
async def test_nothing_but_the_listed_texts_can_be_opened(tmp_path: Path, path: str) -> None:
    write(tmp_path, "a", {"references/x.md": "x", "assets/logo.png": b"\xff", ".git/config": "x"})
    outcome = await opened(await loaded(tmp_path), name="a", file=path)
    assert outcome.status == "error"
    assert "It has: references/x.md." in outcome.result


def test_all_that_is_wrong_in_any_folder_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "other-name", name="another")
    write(tmp_path, "Upper")
    write(tmp_path, "no-text", {"SKILL.md": b"\xff\xfe"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSettings) as caught:
        load_folders(tmp_path)
    for folder, reason in {
        "other-name": "'another' must be the name of the folder",
        "Upper": "name: must be lowercase",
        "no-text": "has no SKILL.md",
        "empty": "has no SKILL.md",
    }.items():
        assert any(str(tmp_path / folder) in line and reason in line for line in caught.value.message.splitlines()), (
            folder
        )
    assert "good" not in caught.value.message


def test_links_lead_nowhere_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside.md"
    outside.write_text("secret")
    root = tmp_path / "skills"
    folder = write(root, "linked")
    (folder / "stolen.md").symlink_to(outside)
    (folder / "everything").symlink_to("/")
    write(tmp_path, "elsewhere")
    (root / "elsewhere").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadSettings) as caught:
        load_folders(root)
    assert "linked: everything leads out of the folder" in caught.value.message
    assert "elsewhere: leads out of" in caught.value.message


async def test_links_within_a_folder_are_followed(tmp_path: Path) -> None:
    folder = write(tmp_path, "mounted", {"..data/guide.md": "The guide."})
    (folder / "guide.md").symlink_to("..data/guide.md")
    [skill] = await loaded(tmp_path)
    assert (await opened([skill], name="mounted", file="guide.md")).result == "The guide."


def test_what_is_no_file_does_not_hold_the_worker_up(tmp_path: Path) -> None:
    os.mkfifo(write(tmp_path, "piped") / "pipe.md")
    [skill] = load_folders(tmp_path)
    assert skill.document is not None
    assert skill.document.paths == ()


def test_a_folder_that_is_not_there_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="LONGHAUL_SKILLS_DIR"):
        load_folders(tmp_path / "missing")


# opening


async def test_a_long_text_is_read_in_parts(tmp_path: Path) -> None:
    write(tmp_path, "a", {"long.md": "x" * (2 * PAGE + 5)})
    skills = await loaded(tmp_path)
    first = await opened(skills, name="a", file="long.md")
    assert first.result == "x" * PAGE + f"\n\n[{PAGE + 5} more characters: open it again with offset {PAGE}]"
    assert (await opened(skills, name="a", file="long.md", offset=2 * PAGE)).result == "xxxxx"
    assert (await opened(skills, name="a", file="long.md", offset=10**6)).status == "error"


async def test_a_skill_that_the_agent_does_not_have_can_not_be_opened(tmp_path: Path) -> None:
    write(tmp_path, "mine")
    write(tmp_path, "yours")
    mine, _ = await loaded(tmp_path)
    outcome = await opened([mine], name="yours")
    assert outcome.status == "error"
    assert "Those that there are: mine." in outcome.result


# finding

SCOPE = KitScope("org_1", "ses_1", "run_1", NoSecrets())


async def test_the_prompt_lists_what_can_be_opened_and_no_more(tmp_path: Path) -> None:
    write(tmp_path, "a-b")
    write(tmp_path, "c")
    outfitter = Outfitter(Toolbox([]), SkillRegistry(await loaded(tmp_path)), {})
    kit = await outfitter.kit([], ["c", "a_b"], SCOPE)
    assert kit.names == ("open_skill",)
    [section] = kit.sections
    assert section.splitlines()[1:] == ["- c: What c is for.", "- a_b: What a-b is for."]
    assert "Do it well" not in section
    assert (await outfitter.kit([], ["c"], SCOPE)).sections[0].splitlines()[1:] == ["- c: What c is for."]


async def test_an_agent_without_skills_gets_nothing_of_them(tmp_path: Path) -> None:
    write(tmp_path, "a")
    toolbox = Toolbox([])
    kit = await Outfitter(toolbox, SkillRegistry(await loaded(tmp_path)), {}).kit([], [], SCOPE)
    assert (kit.toolbox, kit.names, kit.sections) == (toolbox, (), ())


async def test_an_unknown_skill_is_named_with_what_there_is() -> None:
    registry = SkillRegistry([Skill("weather", "d", "p")], missing={"web_search": "set LONGHAUL_SEARCH_ENGINE"})
    with pytest.raises(UnknownSkill) as caught:
        await registry.find("org_1", "run_1", ["weather", "wether", "web_search", "other"])
    assert caught.value.code == "unknown_skill"
    assert "'wether', 'web_search', 'other'" in caught.value.message
    assert list(caught.value.suggestions[:2]) == [
        "web_search: set LONGHAUL_SEARCH_ENGINE",
        "wether: did you mean weather?",
    ]
    assert "skills of this deployment: weather" in caught.value.suggestions


def test_two_skills_of_one_name_are_a_setting_that_is_wrong() -> None:
    with pytest.raises(BadSettings, match="'weather'"):
        SkillRegistry([Skill("weather", "d"), Skill("weather", "e")])


# built in


def test_a_built_in_skill_has_the_tools_that_there_are() -> None:
    skills, missing = builtin_skills(["python", "web_search", "read_page", "list_files", "read_file"])
    assert {skill.name: list(skill.tools) for skill in skills} == {
        "web_search": ["web_search", "read_page"],
        "code_executor": ["python"],
        "file_manager": ["list_files", "read_file"],
    }
    assert list(missing) == ["data_query"]
    files = next(skill for skill in skills if skill.name == "file_manager")
    assert "read_file" in files.prompt
    assert "write_file" not in files.prompt


def test_without_an_engine_there_is_no_web_search() -> None:
    skills, missing = builtin_skills(["python", "read_page"])
    assert [skill.name for skill in skills] == ["code_executor"]
    assert "LONGHAUL_SEARCH_ENGINE" in missing["web_search"]


async def test_a_built_in_skill_brings_its_tools_and_its_prompt() -> None:
    tool = PythonTool()
    toolbox = Toolbox([tool])
    skills, missing = builtin_skills(toolbox.names)
    kit = await Outfitter(toolbox, SkillRegistry(skills, missing=missing), {}).kit([], ["code_executor"], SCOPE)
    assert kit.names == ("python",)
    assert "python runs a subset" in kit.sections[0]
    await tool.aclose()
