"""Ids say what they name, never repeat, and sort by time."""

from __future__ import annotations

import pytest

from kernel.ids import is_id, new_id


def test_an_id_is_its_kind_and_32_hex_digits() -> None:
    made = new_id("run")
    assert made.startswith("run_")
    assert len(made) == 36
    assert is_id("run", made)
    assert not is_id("ses", made)


def test_ids_of_one_process_rise_and_never_repeat() -> None:
    made = [new_id("msg") for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert sorted(made) == made


@pytest.mark.parametrize("text", ["", "run_", "run_12", f"run_{'A' * 32}", f"run_{'a' * 33}", f"run_{'a' * 32}\n"])
def test_what_only_looks_like_an_id_is_none(text: str) -> None:
    assert not is_id("run", text)
