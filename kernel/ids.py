"""Identifiers: a short prefix that says what a thing is, and a UUIDv7, so that ids sort by time of birth."""

from __future__ import annotations

import re
from typing import Literal

from uuid_utils import uuid7

Kind = Literal["org", "key", "agt", "ses", "run", "msg", "mem", "wrk", "req", "apr", "src", "skl", "job", "doc"]

_SHAPE = re.compile(r"[a-z]{3}_[0-9a-f]{32}")


def new_id(kind: Kind) -> str:
    """A new id such as `run_0190…`: 36 characters, rising with time."""
    return f"{kind}_{uuid7().hex}"


def is_id(kind: Kind, text: str) -> bool:
    """Whether `text` has the shape of an id of this kind. Says nothing of whether it exists."""
    return text.startswith(f"{kind}_") and _SHAPE.fullmatch(text) is not None
