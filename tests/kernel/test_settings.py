"""Settings: read once, frozen, and all that is wrong is said at once, without a secret."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from kernel.errors import BadSettings
from kernel.settings import load_settings

GOOD = {
    "DATABASE_URL": "postgresql://user:hunter2@db/longhaul",
    "REDIS_URL": "redis://:hunter2@cache:6379",
    "LONGHAUL_SECRET_KEY": "k" * 32,
}


@pytest.fixture(autouse=True)
def _an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LONGHAUL_", "OPENAI_", "LLM_", "DATABASE_", "REDIS_")) or name == "PORT":
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in (GOOD | variables).items():
        monkeypatch.setenv(name, value)


def test_three_variables_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    settings = load_settings()
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert settings.lease_seconds == 10.0
    assert settings.openai_base_url == "https://api.openai.com/v1"


def test_everything_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, DATABASE_URL="mysql://db", LONGHAUL_SLOTS="many", LONGHAUL_SECRET_KEY="short")
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(BadSettings) as caught:
        load_settings()
    for name in ("DATABASE_URL", "REDIS_URL", "LONGHAUL_SLOTS", "LONGHAUL_SECRET_KEY"):
        assert f"  {name}: " in caught.value.message
    assert "openssl rand -hex 32" in caught.value.message


def test_an_error_repeats_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, DATABASE_URL="mysql://user:hunter2@db", LONGHAUL_SECRET_KEY="hunter2")
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert "hunter2" not in caught.value.message
    assert caught.value.__cause__ is None


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, OPENAI_API_KEY="hunter2", LONGHAUL_JWT_KEY="hunter2")
    assert "hunter2" not in repr(load_settings())


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    with pytest.raises(ValidationError):
        load_settings().slots = 3


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LONGHAUL_CORS_ORIGINS=" https://a.example, https://b.example,", LONGHAUL_EGRESS_ALLOW="")
    settings = load_settings()
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.egress_allow == ()


@pytest.mark.parametrize(("lease", "renew", "good"), [("10", "5", True), ("10", "5.1", False), ("1", "0.5", True)])
def test_a_lease_outlives_one_lost_renewal(monkeypatch: pytest.MonkeyPatch, lease: str, renew: str, good: bool) -> None:
    given(monkeypatch, LONGHAUL_LEASE_SECONDS=lease, LONGHAUL_LEASE_RENEW_SECONDS=renew)
    if good:
        assert load_settings().lease_renew_seconds == float(renew)
    else:
        with pytest.raises(BadSettings, match=r"LONGHAUL_LEASE_RENEW_SECONDS: .*half"):
            load_settings()


@pytest.mark.parametrize("name", ["PORT", "LONGHAUL_PORT"])
def test_the_port_goes_by_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given(monkeypatch, **{name: "1234"})
    assert load_settings().port == 1234


def test_a_short_lease_needs_a_shorter_renewal_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LONGHAUL_LEASE_SECONDS="2")
    with pytest.raises(BadSettings, match="LONGHAUL_LEASE_RENEW_SECONDS"):
        load_settings()


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({"LONGHAUL_SEARCH_ENGINE": "searxng"}, "LONGHAUL_SEARCH_URL: .*is needed for searxng"),
        ({"LONGHAUL_SEARCH_ENGINE": "searxng", "LONGHAUL_SEARCH_URL": "ftp://x"}, "LONGHAUL_SEARCH_URL: .*http"),
        (
            {"LONGHAUL_SEARCH_ENGINE": "searxng", "LONGHAUL_SEARCH_URL": "http://u:p@x"},
            "LONGHAUL_SEARCH_URL: .*password",
        ),
        ({"LONGHAUL_SEARCH_ENGINE": "brave"}, "LONGHAUL_SEARCH_KEY: .*is needed for brave"),
        ({"LONGHAUL_SEARCH_ENGINE": "exa", "LONGHAUL_SEARCH_KEY": "a\nb"}, "LONGHAUL_SEARCH_KEY: .*characters"),
        (
            {"LONGHAUL_SEARCH_ENGINE": "ddgs", "LONGHAUL_SEARCH_URL": "http://x"},
            "LONGHAUL_SEARCH_URL: .*no use to ddgs",
        ),
        ({"LONGHAUL_SEARCH_ENGINE": "other"}, "LONGHAUL_SEARCH_ENGINE: "),
    ],
)
def test_a_search_engine_needs_its_address_or_key(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wrong: str
) -> None:
    given(monkeypatch, **variables)
    with pytest.raises(BadSettings, match=wrong):
        load_settings()


def test_a_key_may_come_with_the_newline_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LONGHAUL_SEARCH_ENGINE="tavily", LONGHAUL_SEARCH_KEY="tvly-key\n")
    assert load_settings().search_key.get_secret_value() == "tvly-key"
