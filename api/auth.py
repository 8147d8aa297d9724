"""Who calls: the Authorization header, as an API key or a JWT of the operator's own identity provider.

A credential that was found good is remembered for at most ten seconds by its SHA-256, so that a busy caller
costs no query per request. A refusal never says what was wrong with the credential.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any, Final

import jwt

from kernel.errors import BadSettings, Forbidden, Unauthenticated
from kernel.ids import is_id
from kernel.postgres import Pool
from kernel.settings import Settings
from kernel.tenants import SCOPES, Principal, are_roles, authenticate, org_exists

_REMEMBERED_SECONDS: Final = 10.0
_MOST_REMEMBERED: Final = 16_384
_LOOKUP_SECONDS: Final = 10.0
_LONGEST: Final = 8192
_SHORTEST_SECRET: Final = 32
_REFUSED: Final = "The credential is missing or not valid."
_SUGGESTIONS: Final = ("send the header Authorization: Bearer <API key>",)


class Authenticator:
    """Turns an Authorization header into a principal."""

    def __init__(self, db: Pool, settings: Settings) -> None:
        self._db = db
        self._jwt_key = settings.jwt_key.get_secret_value()
        self._jwt_algorithm = settings.jwt_algorithm
        self._jwt_audience = settings.jwt_audience
        self._remembered: dict[bytes, tuple[float, Principal]] = {}
        self._orgs: dict[str, float] = {}  # those that exist, and until when that is taken for granted

    async def principal(self, header: bytes | None) -> Principal:
        """Who sent this header.

        Raises:
            Unauthenticated: nobody that we know.
        """
        if header is None or header[:7].lower() != b"bearer " or len(header) > _LONGEST:
            raise _refused()
        credential = header[7:].strip()
        digest = hashlib.sha256(credential).digest()
        known = self._remembered.get(digest)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return known[1]
        try:
            text = credential.decode("ascii")
        except UnicodeDecodeError:
            raise _refused() from None
        lasts = _REMEMBERED_SECONDS
        async with asyncio.timeout(_LOOKUP_SECONDS):
            if text.startswith("lh_"):
                principal = await self._from_key(text)
            else:
                principal, left = await self._from_jwt(text)
                lasts = min(lasts, left)
        self._remembered[digest] = (now + lasts, principal)
        if len(self._remembered) > _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return principal

    async def _from_key(self, key: str) -> Principal:
        try:
            return await authenticate(self._db, key)
        except Unauthenticated:
            raise _refused() from None

    async def _from_jwt(self, token: str) -> tuple[Principal, float]:
        """The principal and for how many seconds the token is still good."""
        if not self._jwt_key:
            raise _refused()
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._jwt_key,
                algorithms=[self._jwt_algorithm],
                audience=self._jwt_audience,
                options={"require": ["exp", "org", "sub"]},
            )
        except jwt.InvalidTokenError:
            raise _refused() from None
        org_id, user_id, scope = claims["org"], claims["sub"], claims.get("scope", "")
        roles = claims.get("roles", [])
        shaped = isinstance(org_id, str) and isinstance(user_id, str) and isinstance(scope, str) and are_roles(roles)
        if not shaped or not is_id("org", org_id) or not 1 <= len(user_id) <= 200 or "\x00" in user_id:
            raise _refused()
        await self._check_org(org_id)
        scopes = frozenset(scope.split()) & frozenset(SCOPES)
        principal = Principal(org_id, user_id, scopes, roles=frozenset(roles))
        return principal, max(0.0, float(claims["exp"]) - time.time())

    async def _check_org(self, org_id: str) -> None:
        """Each user of an org has a JWT of their own: what is the same for all of them is asked once."""
        now = time.monotonic()
        if self._orgs.get(org_id, 0.0) > now:
            return
        if not await org_exists(self._db, org_id):
            raise _refused()
        self._orgs[org_id] = now + _REMEMBERED_SECONDS
        if len(self._orgs) > _MOST_REMEMBERED:
            del self._orgs[next(iter(self._orgs))]


def require_scope(principal: Principal, scope: str) -> None:
    """`admin` stands for every scope.

    Raises:
        Forbidden: the principal lacks the scope.
    """
    if scope not in principal.scopes and "admin" not in principal.scopes:
        raise Forbidden(f"This needs the scope {scope}.", suggestions=("use a key that has it",))


def check_jwt_settings(settings: Settings) -> None:
    """Checks at boot that tokens could be verified.

    Raises:
        BadSettings: the algorithm is not available here, or the key is not one for it.
    """
    key = settings.jwt_key.get_secret_value()
    if not key:
        return
    if settings.jwt_algorithm == "HS256" and len(key.encode()) < _SHORTEST_SECRET:
        raise BadSettings(f"LONGHAUL_JWT_KEY: HS256 needs at least {_SHORTEST_SECRET} bytes (RFC 7518)")
    try:
        jwt.get_algorithm_by_name(settings.jwt_algorithm).prepare_key(key)
    except NotImplementedError:
        raise BadSettings(f"LONGHAUL_JWT_ALGORITHM: {settings.jwt_algorithm} needs the package cryptography") from None
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise BadSettings(f"LONGHAUL_JWT_KEY: not a key for {settings.jwt_algorithm}: {error}") from None


def _refused() -> Unauthenticated:
    return Unauthenticated(_REFUSED, suggestions=_SUGGESTIONS)
