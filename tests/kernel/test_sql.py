"""Named SQL: found by name, and a mistake in a file is noticed before a statement is sent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernel.sql import statements


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package to put files into; its name is `sql_of_a_test`."""
    folder = tmp_path / "sql_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sql_of_a_test", raising=False)
    return folder


def test_statements_are_attributes_without_their_names(package: Path) -> None:
    (package / "x.sql").write_text("-- About all.\n\n-- name: one\nSELECT 1;\n\n-- name: two\n-- Why.\nSELECT 2;\n")
    found = statements("sql_of_a_test", "x.sql")
    assert found.one == "SELECT 1;"
    assert found.two == "-- Why.\nSELECT 2;"


def test_an_unknown_name_says_which_file_lacks_it(package: Path) -> None:
    (package / "x.sql").write_text("-- name: one\nSELECT 1;\n")
    with pytest.raises(AttributeError, match=r"no statement 'three' in sql_of_a_test/x\.sql"):
        _ = statements("sql_of_a_test", "x.sql").three


def test_two_statements_of_one_name_are_refused(package: Path) -> None:
    (package / "x.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(ValueError, match="'one' is there twice"):
        statements("sql_of_a_test", "x.sql")


def test_a_missing_file_is_an_error_at_import(package: Path) -> None:
    with pytest.raises(FileNotFoundError):
        statements("sql_of_a_test", "no.sql")


def test_a_module_outside_a_package_is_told_so() -> None:
    with pytest.raises(ValueError, match="__package__"):
        statements(None, "x.sql")
