"""Errors of outgoing requests. Their messages name host and port, never a path, query, header or body."""

from __future__ import annotations

from kernel.errors import LonghaulError


class EgressError(LonghaulError):
    """An outgoing request brought no response."""

    code = "egress"


class EgressRefused(EgressError):
    """The request breaks a rule and was not sent: the caller must ask for something else."""

    code = "egress_refused"


class EgressFailed(EgressError):
    """The other side did not answer as it should.

    `retryable`: the same request may succeed later. `reached`: the other side may have seen it.
    """

    code = "egress_failed"

    def __init__(self, message: str, *, retryable: bool = True, reached: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.reached = reached
