"""The error tree of the kernel, named for who must act.

Every error carries a stable `code` for programs, a `message` that is safe to show to the caller, and
`suggestions`: what to do about it. Tracebacks and internals never travel in them.
"""

from __future__ import annotations

from collections.abc import Sequence


class LonghaulError(Exception):
    """Root of all errors that Longhaul raises on purpose."""

    code = "internal"

    def __init__(self, message: str, *, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.suggestions = tuple(suggestions)


class CallerError(LonghaulError):
    """The request must change before it can succeed. `status` is the HTTP status that says so."""

    code = "invalid_request"
    status = 400

    def __init__(self, message: str, *, field: str | None = None, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.field = field


class InvalidInput(CallerError):
    """A field is malformed or out of range; `field` names it as a dotted path."""

    code = "invalid_input"
    status = 422


class Unauthenticated(CallerError):
    """No credential, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401


class Forbidden(CallerError):
    """The credential is good but lacks the scope."""

    code = "forbidden"
    status = 403


class NotFound(CallerError):
    """No such thing in the caller's org. Another org's things do not exist either."""

    code = "not_found"
    status = 404


class Conflict(CallerError):
    """The thing's state does not allow the request now."""

    code = "conflict"
    status = 409


class OperatorError(LonghaulError):
    """Someone who runs Longhaul must act: configuration, schema, a server that is down."""

    code = "operator"


class BadSettings(OperatorError):
    """The environment is wrong. Lists every problem at once."""

    code = "bad_settings"


class StoreUnavailable(OperatorError):
    """Postgres or Redis can't be reached at the moment. Safe to retry."""

    code = "store_unavailable"


class Unstorable(LonghaulError):
    """A run produced something that can't be kept."""

    code = "unstorable"


class LeaseLost(LonghaulError):
    """This worker no longer owns the run: its epoch is over. Stop, write nothing more."""

    code = "lease_lost"
