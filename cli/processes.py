"""`longhaul api` and `longhaul worker`: the long-lived lines of the Procfile."""

from __future__ import annotations


def api() -> None:
    """Run one API process. All settings come from the environment."""
    from api.__main__ import main

    main()


def worker() -> None:
    """Run one worker process. All settings come from the environment."""
    from worker.__main__ import main

    main()
