"""Logs tell what happened, and never a secret."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import orjson
import pytest
import structlog
from pydantic import SecretStr

from kernel.log import configure_logs, hide_secrets, scrub
from kernel.settings import Settings

KEY = "lh_" + "0" * 32 + "_" + "s3cret-" * 6


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[io.StringIO]:
    """What a process that logs as JSON writes."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    configure_logs(settings)
    yield written
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "api_key",
        "apikey",
        "token",
        "access_token",
        "secret",
        "client_secret",
        "Authorization",
        "database_url",
    ],
)
def test_values_of_secret_names_are_hidden(name: str) -> None:
    assert hide_secrets(None, "info", {name: "word"}) == {name: "[redacted]"}
    assert hide_secrets(None, "info", {"given": {"headers": {name: "word"}}}) == {
        "given": {"headers": {name: "[redacted]"}}
    }


def test_counts_of_tokens_and_ids_of_keys_are_no_secrets() -> None:
    entry = {"tokens": 5, "max_tokens": 100, "token": 7, "key_id": "key_1", "text": "a token", "password": None}
    assert hide_secrets(None, "info", entry) == entry


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY} was used", "key [redacted] was used"),
        ("postgresql://user:pass@host/db", "postgresql://[redacted]@host/db"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("/v1/runs/run_1/events?after=1&token=eyJh", "/v1/runs/run_1/events?after=1&token=[redacted]"),
        ("eyJhbGciOi.eyJzdWIiOi.c2ln", "[redacted]"),
        ("http://host/path@here", "http://host/path@here"),
    ],
)
def test_what_looks_like_a_credential_is_hidden_wherever_it_stands(text: str, shown: str) -> None:
    assert scrub(text) == shown


def test_a_line_is_one_json_object_whatever_is_in_it(lines: io.StringIO) -> None:
    log = structlog.get_logger("test")
    log.info("happened", what={1: object(), "é": SecretStr("word")}, text="two\nlines", password="word")
    log.debug("too quiet")
    logging.getLogger("some.library").warning("said %s", KEY)
    try:
        raise ValueError(f"bad {KEY}")
    except ValueError:
        log.exception("failed")
    first, second, third = (orjson.loads(line) for line in lines.getvalue().splitlines())
    assert (first["event"], first["level"], first["text"]) == ("happened", "info", "two\nlines")
    assert (second["event"], second["logger"]) == ("said [redacted]", "some.library")
    assert "ValueError: bad [redacted]" in third["exception"]
    assert "s3cret" not in lines.getvalue()
    assert '"word"' not in lines.getvalue()
