"""What an API process spares itself: optional parts of two libraries, which import them wherever they are installed.

structlog imports Rich, for tracebacks that we don't use (kernel/log.py); PyJWT imports cryptography, for algorithms
with public keys. Together that is 13 MB in each process. Neither library can be told to leave them out, but both do
without where the import fails, and so it is made to fail: for as long as the library is imported, in this process
alone. Nothing in the libraries is changed, and whoever needs the packages later, as `kernel.sealing` does, imports
them as ever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kernel.settings import Settings

_HMAC = "HS"


def import_without_unused_extras(settings: Settings) -> None:
    """Imports structlog and PyJWT, each without the optional part that these settings have no use for.

    To be called before anything else imports them; what is imported already stays as it is.
    """
    with _absent("rich"):
        importlib.import_module("structlog")
    # Stream tokens are signed with HMAC whatever the tokens of users are.
    if settings.jwt_algorithm.startswith(_HMAC) or not settings.jwt_key.get_secret_value():
        with _absent("cryptography"):
            importlib.import_module("jwt")


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """For the block, importing `package` raises ModuleNotFoundError, as if it were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # documented: "The import system", the module cache
    try:
        yield
    finally:
        del sys.modules[package]
