"""What the background jobs of a worker are: a handler for each kind. See `worker.jobs`."""

from __future__ import annotations

from worker.jobs import Handler


def background() -> dict[str, Handler]:
    """The handlers by the kind of job they do."""
    return {}
