"""Request headers that a tool may set, and those that survive a redirect to another origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from orchestrator.egress.errors import EgressRefused

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8400}")
_MOST: Final = 64

# The message's framing and the connection belong to the client, or requests could be smuggled.
_RESERVED: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# Not the other way round (a list of headers to drop): keys travel under any name, such as X-Api-Key.
_HARMLESS: Final = frozenset(("accept", "accept-language", "content-type", "user-agent"))


def checked(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, if all of them may be sent.

    Raises:
        EgressRefused: names the header; its value is never shown.
    """
    if len(headers) > _MOST:
        raise EgressRefused(f"more than {_MOST} headers")
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise EgressRefused(f"{name[:80]!r} is not a header name")
        if name.lower() in _RESERVED:
            raise EgressRefused(f"the header {name} cannot be set")
        if not _VALUE.fullmatch(value):
            raise EgressRefused(f"the value of the header {name} is too long or holds control characters")
    return dict(headers)


def for_another_origin(headers: Mapping[str, str]) -> dict[str, str]:
    """What may follow a redirect to another scheme, host or port: nothing that could be a credential."""
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def for_a_bodyless_request(headers: Mapping[str, str]) -> dict[str, str]:
    """What is left when a redirect turns the request into a GET."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("content-")}
