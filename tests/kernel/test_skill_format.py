"""SKILL.md: what keeps to the open format is read, what does not is refused with all that is wrong with it."""

from __future__ import annotations

import time

import pytest

from kernel.skill_config import is_file_path
from kernel.skill_format import BadSkillFile, read_skill

HEAD = "---\nname: pdf-forms\ndescription: Fills forms.\n"


def problems(text: str) -> str:
    with pytest.raises(BadSkillFile) as caught:
        read_skill(text)
    return "\n".join(caught.value.problems)


def test_name_and_description_are_enough() -> None:
    skill = read_skill(f"{HEAD}---\n")
    assert (skill.name, skill.slug, skill.description, skill.body) == ("pdf-forms", "pdf_forms", "Fills forms.", "")
    assert (skill.license, skill.compatibility, skill.metadata, skill.allowed_tools) == (None, None, {}, ())


def test_every_field_of_the_format_is_read() -> None:
    skill = read_skill(
        "\ufeff---\r\nname: pdf-forms\r\ndescription: >-\r\n  Fills forms:\r\n  all of them.\r\nlicense: Apache-2.0\r\n"
        "compatibility: Needs Python 3.14\r\nmetadata:\r\n  author: example-org\r\n  version: 1.10\r\n"
        "allowed-tools: Bash(git add:*) Bash(jq:*) Read http_fetch, python\r\n---\r\n\r\n# Forms\r\n\r\n---\r\nmore\r\n"
    )
    assert skill.description == "Fills forms: all of them."
    assert (skill.license, skill.compatibility) == ("Apache-2.0", "Needs Python 3.14")
    assert skill.metadata == {"author": "example-org", "version": "1.10"}
    assert skill.allowed_tools == ("Read", "http_fetch", "python")
    assert skill.body == "# Forms\n\n---\nmore"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with a front matter"),
        ("# Title\n---\nname: a\n---\n", "must begin with a front matter"),
        ("---\nname: a\n", "must begin with a front matter"),
        ("---\n---\n", "must be a mapping"),
        ("---\n- a\n---\n", "must be a mapping"),
        ("---\njust text\n---\n", "must be a mapping"),
        ("---\nname: a\nname: b\n---\n", "line 3: 'name' is there twice"),
        ("---\ndescription: Use: this\n---\n", "line 2: mapping values are not allowed here"),
        ("---\na: &x b\nc: *x\n---\n", "line 3: aliases are not allowed"),
        ("---\n? [a, b]\n: c\n---\n", "a key must be a text"),
        ("---\n" + "[" * 5_000 + "\n---\n", "not valid YAML"),
        ("---\na: !!python/object/apply:os.system [id]\n---\n", "name: is missing"),
        ("---\na: \x01\n---\n", "not valid YAML"),
        ("---\n" + "a: b\n" * 4_000 + "---\n", "longer than 16384 characters"),
        ("---\nname: a\n---\n", "description: is missing"),
        ("---\ndescription: a\n---\n", "name: is missing"),
        (f"{HEAD}version: 2\n---\n", "version: is no field of the format"),
        (f"{HEAD}license: [a]\n---\n", "license: must be a text"),
        (f"{HEAD}compatibility: {'c' * 501}\n---\n", "compatibility: must not be longer than 500"),
        (f"{HEAD}metadata: text\n---\n", "metadata: must be a mapping"),
        (f"{HEAD}metadata:\n  a: [b]\n---\n", "metadata: must be a mapping of texts"),
        (f"{HEAD}allowed-tools:\n  a: b\n---\n", "allowed-tools: must be a text"),
        (f"{HEAD}---\n{'x' * 65_537}", "longer than 65536 characters"),
        ("---\nname: a\ndescription: '  '\n---\n", "description: must not be empty"),
        (f"---\nname: a\ndescription: {'d' * 1_025}\n---\n", "description: must not be longer than 1024"),
    ],
)
def test_what_does_not_keep_to_the_format_is_refused(text: str, words: str) -> None:
    assert words in problems(text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PDF", "lowercase"),
        ("-a", "lowercase"),
        ("a-", "lowercase"),
        ("a--b", "lowercase"),
        ("a_b", "lowercase"),
        ("a b", "lowercase"),
        ("../a", "lowercase"),
        ("é", "lowercase"),
        ("a" * 65, "not be longer than 64"),
        ("3d-models", "must begin with a letter"),
    ],
)
def test_a_name_is_lowercase_letters_digits_and_hyphens(name: str, words: str) -> None:
    assert words in problems(f"---\nname: {name}\ndescription: d\n---\n")


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems("---\nname: A\nlicense: [x]\nextra: 1\n---\n")
    for words in ("name: must be", "description: is missing", "license: must be", "extra: is no field"):
        assert words in found


@pytest.mark.parametrize("text", ["---\n" * 10_000, "-" * 100_000, "---\n" + " \n" * 30_000, "---" + " " * 100_000])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    with pytest.raises(BadSkillFile):
        read_skill(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("path", ["a", "references/a.md", "scripts/x_1.py", "a/b/c/d/e/f/g/h", "Read Me.md"])
def test_paths_within_a_folder_are_taken(path: str) -> None:
    assert is_file_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "../a", "a/../b", "a//b", "a/", ".a", "a/.b", "a\\b", "a\n", "SKILL.md", "é", "a/" * 9 + "a", "a" * 201],
)
def test_other_paths_are_not(path: str) -> None:
    assert not is_file_path(path)
