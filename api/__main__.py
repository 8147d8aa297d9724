"""`python -m api`: one API process, configured by the environment.

What the process is made of is imported after the settings are known, because they say what it can do without
(api/spared.py).
"""

from __future__ import annotations

import sys

from api.spared import import_without_unused_extras
from kernel.errors import BadSettings
from kernel.settings import load_settings


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exits with 2 for bad settings, 1 for an address that can't be had."""
    try:
        settings = load_settings()
    except BadSettings as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(2)
    import_without_unused_extras(settings)
    from api.process import serve

    serve(settings)


if __name__ == "__main__":
    main()
