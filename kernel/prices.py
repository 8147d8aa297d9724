"""What models cost: a table in configuration, by the model's name, per million tokens.

The currency is whatever the table's author counts in; limits on cost count in the same. A model that is not in the
table has no price: what it costs is then 0 in every sum, and a run with a limit on cost does not start with it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

_MILLION: Final = 1_000_000

_Amount = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class Price(BaseModel):
    """One model's price per million tokens. Input that the endpoint had cached costs `cached_input`, else `input`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: _Amount
    cached_input: _Amount | None = None
    output: _Amount

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """What one call costs. `cached_tokens` are those of `input_tokens` that were cached."""
        cached = min(max(cached_tokens, 0), input_tokens) if self.cached_input is not None else 0
        fresh = (input_tokens - cached) * self.input + output_tokens * self.output
        return (fresh + cached * (self.cached_input or 0.0)) / _MILLION


_TABLE: Final = TypeAdapter(dict[Annotated[str, Field(min_length=1, max_length=200)], Price])


@dataclass(frozen=True, slots=True)
class Prices:
    """The table. A name that ends in `*` stands for all models that begin so; the longest that fits counts."""

    exact: Mapping[str, Price]
    prefixes: tuple[tuple[str, Price], ...]

    @classmethod
    def none(cls) -> Prices:
        """The empty table."""
        return cls({}, ())

    @classmethod
    def read(cls, text: str) -> Prices:
        """The table in `text`, which is JSON, or names a `.json` or `.toml` file that holds it.

        Raises:
            ValueError: it is no such table; says what is wrong.
        """
        if not text.strip():
            return cls.none()
        try:
            table = _TABLE.validate_python(_document(text.strip()))
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
                for problem in error.errors(include_url=False, include_input=False, include_context=False)[:5]
            ]
            raise ValueError("; ".join(problems)) from None
        prefixes = [(name[:-1], price) for name, price in table.items() if name.endswith("*")]
        return cls(
            {name: price for name, price in table.items() if not name.endswith("*")},
            tuple(sorted(prefixes, key=lambda entry: -len(entry[0]))),
        )

    def of(self, model: str) -> Price | None:
        """The price of a model, None if the table does not know it."""
        price = self.exact.get(model)
        if price is not None:
            return price
        return next((price for prefix, price in self.prefixes if model.startswith(prefix)), None)

    def cost(self, model: str, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """What a call of `model` costs; 0.0 for one without a price."""
        price = self.of(model)
        return 0.0 if price is None else price.cost(input_tokens, output_tokens, cached_tokens)


def _document(text: str) -> object:
    if text.startswith("{"):
        return _json(text, "the text")
    path = Path(text)
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"can't read the file {text!r}: {error}") from None
    if path.suffix.lower() == ".toml":
        try:
            return tomllib.loads(content)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{text!r} is not valid TOML: {error}") from None
    return _json(content, repr(text))


def _json(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
