"""The gate decides where a request may go, three times over.

1. The URL, before anything happens: scheme, credentials, and hosts that are written as addresses.
2. Every address that a name resolves to, at the one resolution whose answer is then connected to.
3. Every socket, at the moment it is opened. This repeats what 1 and 2 found, and holds should the HTTP library
   ever find a way to an address that passed neither.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Final

from yarl import URL

from orchestrator.egress.addresses import canonical, is_public, literal
from orchestrator.egress.errors import EgressRefused

_LONGEST_URL: Final = 8_192


class Gate:
    """Lets requests through to the public internet and to the `host:port` pairs of the allow list.

    An allowed host is compared as it stands in the URL: a name with a name, an address with an address in any
    notation. IPv6 addresses stand in brackets.

    Raises:
        ValueError: an entry of the allow list is not `host:port`.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allowed = {_pair(entry) for entry in allow}
        # What allowed names resolved to. It only feeds the third check: the first two judge each request anew.
        self._admitted: set[tuple[str, int]] = set()

    def url(self, text: str | URL) -> URL:
        """The URL to request: absolute, without fragment, an address as host in its usual form.

        Raises:
            EgressRefused: says which rule the URL breaks.
        """
        try:
            url = (text if isinstance(text, URL) else URL(text)).with_fragment(None)
            host, port = url.raw_host, url.port
        except (ValueError, TypeError):
            raise EgressRefused("this is not a valid URL") from None
        if url.scheme not in ("http", "https"):
            raise EgressRefused("only http:// and https:// URLs can be requested")
        if len(str(url)) > _LONGEST_URL:
            raise EgressRefused(f"the URL is longer than {_LONGEST_URL} characters")
        if url.raw_user is not None or url.raw_password is not None:
            raise EgressRefused("user names and passwords in a URL are not accepted")
        if not host or not port:
            raise EgressRefused("the URL names no host or no port")
        address = literal(host)
        if address is None:
            return url
        if (str(address), port) in self._allowed:
            self._admitted.add((str(address), port))
        elif not is_public(address):
            raise EgressRefused(f"{host}:{port} is a private or special address")
        return url.with_host(str(address))

    def addresses(self, host: str, port: int, found: Sequence[str]) -> list[str]:
        """The addresses of `host` that may be connected to.

        Raises:
            EgressRefused: one of them is private. A name that leads both outside and inside is not trusted at all.
        """
        if (canonical(host), port) in self._allowed:
            self._admitted.update((address, port) for address in found)
        elif not all(is_public(ip_address(address)) for address in found):
            raise EgressRefused(f"{host}:{port} leads to a private or special address")
        return list(found)

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one `getaddrinfo` entry. OSError where the address has not been let through."""
        family, kind, protocol, _, (host, port, *_) = info
        if (host, port) not in self._admitted and not is_public(ip_address(host)):
            raise PermissionError(f"no socket to {host}:{port}: a private or special address")
        return socket.socket(family, kind, protocol)


def _pair(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ValueError(f"egress allow list: {entry!r} is not host:port")
    try:
        return canonical(host), int(port)
    except EgressRefused as error:
        raise ValueError(f"egress allow list: {entry!r}: {error.message}") from None
