"""What a tool returned becomes text: how much of it is looked at, and what of it is shown."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, overload

import pytest

from orchestrator.tools.redaction import Redaction
from orchestrator.tools.results import render
from orchestrator.tools.tool import NoSecrets

unstruck = NoSecrets().redact


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\x01", "[binary content of 2 bytes, not shown]"),
        (bytearray(3), "[binary content of 3 bytes, not shown]"),
        (memoryview(bytes(8)), "[binary content of 8 bytes, not shown]"),
        ({"file": b"\x89PNG", "n": 1}, '{"file":"[binary content of 4 bytes, not shown]","n":1}'),
        ([b"", "x"], '["[binary content of 0 bytes, not shown]","x"]'),
    ],
)
def test_bytes_become_a_note(value: object, text: str) -> None:
    assert render(value, 1_000, unstruck) == text


@pytest.mark.parametrize(
    "value",
    ["é" * 20_000_000, {"rows": ["x" * 100] * 500_000}, [["é" * 20_000_000]], {"x" * 20_000_000: 1}, range(10**15)],
    ids=["text", "rows", "nested", "key", "endless"],
)
def test_a_flood_is_cut_without_being_rendered(value: object) -> None:
    tracemalloc.start()
    text = render(value, 10_000, unstruck)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(text.encode()) <= 10_000
    assert text.endswith(" in all, only the beginning is shown]")
    assert peak < 16_000_000


class Endless(Sequence[int]):
    """As long as anybody asks."""

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return 7

    def __iter__(self) -> Iterator[int]:
        return count()


def test_a_list_without_end_has_a_beginning() -> None:
    assert render({"numbers": Endless()}, 300, unstruck).startswith('{"numbers":[0,1,2,3,')


def test_what_is_large_and_fits_is_whole() -> None:
    value = [{"n": number, "text": "é"} for number in range(20_000)]
    assert json.loads(render(value, 10_000_000, unstruck)) == value


def test_a_secret_is_struck_before_a_text_is_cut() -> None:
    redact = Redaction(["sk-hunter2-4711"]).strike
    for value in ("x" * 990 + "sk-hunter2-4711" * 10, "sk-hunter2-4711" * 500_000, ["sk-hunter2-4711"] * 300_000):
        for limit in range(1_000, 1_016):
            assert "hunt" not in render(value, limit, redact)


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize("value", [object(), {1}, _circle(), [count()], {"a": _circle()}])
def test_what_is_no_json_is_an_error(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        render(value, 1_000, unstruck)
