"""How long is waited before a model is asked again, by the endpoint's word and by our own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from orchestrator.errors import ModelError, ModelOverloaded, ModelRateLimited, ModelRefused
from orchestrator.models.diagnosis import Diagnosis
from orchestrator.models.retries import LONGEST_OBEYED, LONGEST_PAUSE, Retries

RETRIES = Retries(3, base=0.25)


def asked_by(status: int, **headers: str) -> float | None:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    error = Diagnosis("http://example.com", "").of_response(status, names, b"{}")
    assert isinstance(error, ModelRateLimited | ModelOverloaded)
    return error.retry_after


@pytest.mark.parametrize("status", [429, 503])
def test_seconds_and_milliseconds_are_understood(status: int) -> None:
    assert asked_by(status, retry_after="7") == 7
    assert asked_by(status, retry_after=" 0.5 ") == 0.5
    assert asked_by(status, retry_after_ms="1500", retry_after="7") == 1.5
    assert asked_by(status, retry_after="-3") == 0


def test_a_date_is_understood() -> None:
    soon = asked_by(429, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True))
    assert soon is not None
    assert 17 < soon <= 20
    assert asked_by(429, retry_after="Sun, 06 Nov 1994 08:49:37 GMT") == 0


@pytest.mark.parametrize("nonsense", ["", "soon", "nan", "inf", "1e999", "32 Nov"])
def test_what_is_neither_is_as_good_as_nothing(nonsense: str) -> None:
    assert asked_by(429, retry_after=nonsense) is None


@pytest.mark.parametrize("error", [ModelRateLimited("busy", retry_after=3), ModelOverloaded("busy", retry_after=3)])
def test_the_pause_is_never_shorter_than_asked_and_differs(error: ModelError) -> None:
    pauses = {RETRIES.pause(1, error) for _ in range(50)}
    assert all(pause is not None and 3.125 <= pause <= 3.25 for pause in pauses)
    assert len(pauses) > 10, "runs that fail together don't come back together"


def test_pauses_double_up_to_the_longest() -> None:
    patient = Retries(20, base=0.25)
    busy = ModelOverloaded("busy")
    for failures, most in [(1, 0.25), (2, 0.5), (3, 1.0), (4, 2.0), (20, LONGEST_PAUSE)]:
        pause = patient.pause(failures, busy)
        assert pause is not None
        assert most / 2 <= pause <= most


def test_what_will_not_pass_is_not_waited_for() -> None:
    assert RETRIES.pause(1, ModelRefused("no")) is None
    assert RETRIES.pause(4, ModelOverloaded("busy")) is None
    assert RETRIES.pause(1, ModelRateLimited("busy", retry_after=LONGEST_OBEYED + 1)) is None
