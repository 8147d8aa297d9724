"""Errors as RFC 9457 problem details: what was wrong, where, what to do, and never an internal.

The one place that turns exceptions into HTTP. Whoever must act decides the status: callers get a 4xx, an absent
Postgres or Redis is a 503 that may be retried, everything else is a 500 whose cause stays in the log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kernel.errors import CallerError, StoreUnavailable
from kernel.postgres import UNAVAILABLE

log = structlog.get_logger(__name__)

PROBLEM_TYPE: Final = b"application/problem+json"
RETRY_AFTER_SECONDS: Final = 1

_MOST_FIELDS: Final = 50
_TAG: Final = re.compile(r"<\w+>|\[key\]")

# Nothing is wrong with the request, nor with us: a server is away, or two transactions met.
_AWAY: Final = (
    *UNAVAILABLE,
    StoreUnavailable,
    RedisConnectionError,
    RedisTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,
)


class FieldError(BaseModel):
    """One field and what is wrong with it."""

    field: str = Field(description="dotted path in the body, or the name of a parameter or header")
    message: str


class ProblemView(BaseModel):
    """A problem as it is sent (RFC 9457)."""

    model_config = ConfigDict(title="Problem", extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="stable, for programs")
    request_id: str | None = None
    errors: list[FieldError] | None = None
    suggestions: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem to be sent. `fields` are (field, message) pairs."""

    status: int
    code: str
    detail: str
    fields: Sequence[tuple[str, str]] = ()
    suggestions: Sequence[str] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def shown(self, request_id: str | None = None) -> dict[str, Any]:
        """The problem as a JSON object."""
        shown: dict[str, Any] = {
            "type": f"urn:longhaul:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if request_id is not None:
            shown["request_id"] = request_id
        if self.fields:
            shown["errors"] = [{"field": field, "message": message} for field, message in self.fields]
        if self.suggestions:
            shown["suggestions"] = list(self.suggestions)
        return shown

    def render(self, request_id: str | None = None) -> bytes:
        """The problem as JSON."""
        return orjson.dumps(self.shown(request_id))


class Refusal(Exception):
    """Raised at the edge for what the kernel's errors don't cover, such as a body that is too large."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def refuse(
    status: int,
    code: str,
    detail: str,
    *,
    suggestions: Sequence[str] = (),
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Refusal:
    """An error that becomes this problem."""
    return Refusal(Problem(status, code, detail, (), suggestions, headers))


def invalid(*fields: tuple[str, str]) -> Refusal:
    """A 422 that names each field, as (field, message)."""
    return Refusal(_invalid_fields(fields))


def problem_of(error: Exception) -> Problem:
    """The problem that tells of `error`. Logs what the caller isn't told."""
    match error:
        case Refusal():
            return error.problem
        case CallerError():
            return Problem(
                error.status,
                error.code,
                error.message,
                ((error.field, error.message),) if error.field is not None and error.status == 422 else (),
                error.suggestions,
                ((b"www-authenticate", b"Bearer"),) if error.status == 401 else (),
            )
        case ValidationError():
            return _invalid_fields(fields_of(error))
    # asyncpg's complaints about arguments are InterfaceErrors too, but a mistake of ours.
    if isinstance(error, _AWAY) and not isinstance(error, ValueError):
        log.warning("store_unavailable", error=f"{type(error).__name__}: {error}")
        return Problem(
            503,
            StoreUnavailable.code,
            "A server that this needs can't be reached at the moment.",
            suggestions=("send the request again in a moment; with an Idempotency-Key it is done at most once",),
            headers=((b"retry-after", b"%d" % RETRY_AFTER_SECONDS),),
        )
    log.error("unexpected_error", exc_info=error)
    return Problem(
        500,
        "internal",
        "Something went wrong on our side.",
        suggestions=("report it together with the request_id",),
    )


def fields_of(error: ValidationError, prefix: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(field, message) for each thing that is wrong."""
    found = []
    for entry in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FIELDS]:
        # What pydantic adds for branches of unions and for keys is no part of the caller's path.
        steps = [str(step) for step in entry["loc"]]
        path = ".".join([*prefix, *(step for step in steps if not _TAG.fullmatch(step))])
        found.append((path or "body", entry["msg"].removeprefix("Value error, ")))
    return found


def _invalid_fields(fields: Sequence[tuple[str, str]]) -> Problem:
    names = ", ".join(dict.fromkeys(field for field, _ in fields[:5]))
    return Problem(422, "invalid_input", f"The request is not valid: see {names}.", fields)
