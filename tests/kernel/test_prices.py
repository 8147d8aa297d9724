"""The price table: JSON or a file, exact names before patterns, and clear words where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.errors import BadSettings
from kernel.prices import Prices
from kernel.settings import load_settings

TABLE = """{
    "big": {"input": 2, "output": 10, "cached_input": 1},
    "b*": {"input": 1, "output": 1},
    "bi*": {"input": 3, "output": 3}
}"""


def test_a_call_costs_what_its_tokens_cost() -> None:
    prices = Prices.read(TABLE)
    assert prices.cost("big", 1_000_000, 100_000) == pytest.approx(3.0)
    assert prices.cost("big", 1_000_000, 0, cached_tokens=400_000) == pytest.approx(1.6)
    assert prices.cost("big", 10, 0, cached_tokens=1_000_000) == pytest.approx(10 / 1_000_000)


def test_an_exact_name_counts_before_the_longest_pattern_that_fits() -> None:
    prices = Prices.read(TABLE)
    assert [prices.cost(name, 1_000_000, 0) for name in ("big", "bigger", "bob", "small")] == [2, 3, 1, 0]
    assert prices.of("small") is None


def test_a_model_without_a_price_for_cached_input_pays_all_of_it() -> None:
    assert Prices.read(TABLE).cost("bob", 1_000_000, 0, cached_tokens=1_000_000) == 1


def test_no_table_knows_no_model() -> None:
    assert Prices.read("  ").of("big") is None


def test_a_table_may_stand_in_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('["gpt-4o"]\ninput = 2.5\noutput = 10\n')
    assert Prices.read(str(file)).cost("gpt-4o", 1_000_000, 0) == 2.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"m": {"input": -1, "output": 1}}', "m.input"),
        ('{"m": {"input": 1}}', "m.output"),
        ('{"m": {"input": 1, "output": 1, "put": 1}}', "m.put"),
        ('{"m": {"input": "NaN", "output": 1}}', "m.input"),
        ("/nowhere/prices.json", "can't read the file"),
    ],
)
def test_what_is_no_table_is_refused_at_boot(monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setenv("LONGHAUL_PRICES", text)
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert "LONGHAUL_PRICES" in str(caught.value)
    assert words in str(caught.value)
