"""Where a source is: its address, checked and pinned, and how the connection is protected.

An org writes the address, so it is judged like any other that leads outside: no private or special one, no unix
socket, nothing from the environment. The name is resolved once, and connected to is what it resolved to; certificates
are still checked against the name (`postgres_process.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from orchestrator.egress.errors import EgressRefused
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import Resolve
from orchestrator.tools.errors import ToolFailure

_MODES: Final = ("disable", "require", "verify-ca", "verify-full")
Mode = Literal["disable", "require", "verify-ca", "verify-full"]


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed address. `mode` is libpq's sslmode; without one it is `require`, for passwords travel."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = ""
    mode: str = "require"

    @classmethod
    def parse(cls, text: str) -> Dsn:
        """Reads `postgresql://user:password@host:port/database?sslmode=…`.

        Raises:
            ToolFailure: says what is wrong with it, and never repeats it.
        """
        try:
            parts = urlsplit(text.strip())
            port, query = (
                parts.port or 5432,
                dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else ()),
            )
        except ValueError:
            raise _unusable("is no valid URL") from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise _unusable("does not start with postgresql://")
        if not parts.hostname or not parts.username:
            raise _unusable("names no host or no user")
        if "," in parts.netloc.rpartition("@")[2]:
            raise _unusable("names more than one host")
        mode = query.pop("sslmode", "require")
        if query:
            raise _unusable(f"has parameters that can't be used here: {', '.join(sorted(query))[:200]}")
        if mode not in _MODES:
            raise _unusable(f"has an sslmode that is not one of {', '.join(_MODES)}")
        database = unquote(parts.path.removeprefix("/"))
        user = unquote(parts.username)
        return cls(parts.hostname, port, user, unquote(parts.password or ""), database or user, mode)

    async def pinned(self, gate: Gate, resolve: Resolve) -> dict[str, Any]:
        """The arguments for asyncpg to connect to it.

        Raises:
            ToolFailure: the address may not be reached, or leads nowhere.
        """
        shown = f"{self.host}:{self.port}"
        try:
            bracketed = f"[{self.host}]" if ":" in self.host else self.host
            url = gate.url(f"http://{bracketed}:{self.port}/")
            found: Sequence[str] = await resolve(url.raw_host or "", self.port)
            addresses = gate.addresses(url.raw_host or "", self.port, found)
        except EgressRefused as refused:
            raise ToolFailure(f"The source can't be reached: {refused.message}.", reached=False) from None
        except OSError:
            raise ToolFailure(f"The source's host {shown} is not known.", retryable=True, reached=False) from None
        if not addresses:
            raise ToolFailure(f"The source's host {shown} has no address.", reached=False)
        return {
            "host": addresses[0],
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
        }


def _unusable(why: str) -> ToolFailure:
    return ToolFailure(f"The source's address {why}: its owner must correct the secret.", reached=False)
