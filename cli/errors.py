"""What can go wrong at the terminal. All are for the person who typed the command."""

from __future__ import annotations

from kernel.errors import OperatorError


class ServerMissing(OperatorError):
    """A program that the stack needs is not installed."""

    code = "server_missing"


class ProcessFailed(OperatorError):
    """A process of the stack did not come up. The message carries the end of its log."""

    code = "process_failed"


class AlreadyRunning(OperatorError):
    """Another stack uses this data directory."""

    code = "already_running"


class NotRunning(OperatorError):
    """No running stack was found and none was named."""

    code = "not_running"


class BadData(OperatorError):
    """The data directory can't be used: wrong owner, wrong version, wrong path."""

    code = "bad_data_directory"


class Refused(OperatorError):
    """The API answered with a problem, or not at all."""

    code = "refused"


class RunFailed(OperatorError):
    """The run ended, but not in success."""

    code = "run_failed"


class DatabaseFailed(OperatorError):
    """Postgres can't be reached, or its schema could not be brought up to date."""

    code = "database_failed"
