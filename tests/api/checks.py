"""What is checked of many answers."""

from __future__ import annotations

from typing import Any

import httpx

MISSING = {kind: f"{kind}_{'0' * 32}" for kind in ("agt", "ses", "run")}
"""Ids of the right shape that nothing has."""


def problem(answer: httpx.Response, status: int, *fields: str) -> dict[str, Any]:
    """The problem in `answer`, which must have this status and name these fields."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:longhaul:problem:")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in answer.text
    named = [error["field"] for error in body.get("errors", [])]
    assert set(named) >= set(fields), (named, fields)
    return body


def ok(answer: httpx.Response, status: int = 200) -> Any:
    """The JSON of `answer`, which must have this status."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    return answer.json()
