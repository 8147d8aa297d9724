"""Stream tokens: leave to follow one session or one run for a few minutes, given in the URL.

Browsers can't set headers on EventSource, and an API key has no place in a URL. A token is signed with the
deployment's secret key, names its org and what may be followed, and is good for nothing else.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from pydantic import AwareDatetime, Field

from api.values import View
from kernel.errors import Unauthenticated
from kernel.settings import Settings
from kernel.tenants import Principal

_AUDIENCE: Final = "longhaul-stream"
_ALGORITHM: Final = "HS256"
_MOST_REMEMBERED: Final = 16_384


class StreamTokenView(View):
    """A stream token."""

    token: str
    expires_at: AwareDatetime
    url: str = Field(description="path and query that an EventSource can open as they are")


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token that was found good says. `until` is its end, in seconds since 1970."""

    subject: str
    principal: Principal
    until: float


class StreamTokens:
    """Signs stream tokens and reads them back.

    A browser that loses its stream comes back with the same token, and thousands may do so at once: what was found
    good is remembered by its SHA-256.
    """

    def __init__(self, key: str, seconds: int) -> None:
        self._key = key
        self._seconds = seconds
        self._verified: dict[bytes, _Verified] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> StreamTokens:
        return cls(settings.secret_key.get_secret_value(), settings.stream_token_ttl)

    def issue(self, principal: Principal, subject: str, path: str) -> dict[str, Any]:
        """A `StreamTokenView` for the session or run id `subject`, whose events are at `path`."""
        now = datetime.now(UTC).replace(microsecond=0)
        expires_at = now + timedelta(seconds=self._seconds)
        claims = {
            "aud": _AUDIENCE,
            "org": principal.org_id,
            "sub": subject,
            "usr": principal.user_id,
            "iat": now,
            "exp": expires_at,
        }
        token = jwt.encode(claims, self._key, algorithm=_ALGORITHM)
        return {"token": token, "expires_at": expires_at, "url": f"{path}?token={token}"}

    def verify(self, token: str, subject: str) -> Principal:
        """Who may read the events of `subject` with this token.

        Raises:
            Unauthenticated: it is malformed, expired, forged or for something else.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is None or known.until <= time.time():
            known = self._verified[digest] = self._read(token)
            if len(self._verified) > _MOST_REMEMBERED:
                del self._verified[next(iter(self._verified))]
        if known.subject != subject:
            raise _refused()
        return known.principal

    def _read(self, token: str) -> _Verified:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "org", "sub"]},
            )
        except jwt.InvalidTokenError:
            raise _refused() from None
        principal = Principal(claims["org"], claims.get("usr"), frozenset({"read"}))
        return _Verified(claims["sub"], principal, float(claims["exp"]))


def _refused() -> Unauthenticated:
    return Unauthenticated("The stream token is not valid for this.", suggestions=("ask for a new stream token",))
