"""Which addresses tools may reach: the public internet and nothing else.

The tables of `ipaddress` differ between Python releases and count things as global that are not a place on the
internet, so the rule here is narrower. What is not certainly public is private.
"""

from __future__ import annotations

import re
import socket
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from orchestrator.egress.errors import EgressRefused

Address = IPv4Address | IPv6Address

_NEVER_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # shared between carriers and clouds, with Alibaba's metadata service
        "169.254.0.0/16",  # link-local, with the metadata service of most clouds
        "168.63.129.16/32",  # Azure's host agent: a public number that answers only from inside
        "192.0.0.0/24",  # protocol assignments, with Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_UNICAST_V6: Final = IPv6Network("2000::/3")
_NEVER_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries an IPv4 address, and nobody routes it any more
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")

_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC: Final = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]*|[0-9]+))*")


def is_public(address: Address) -> bool:
    """Whether this is a host on the public internet. IPv4 inside IPv6 is judged as the IPv4 address it stands for."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NEVER_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return (
        address.scope_id is None
        and address in _UNICAST_V6
        and address.is_global
        and not any(address in network for network in _NEVER_V6)
    )


def literal(host: str) -> Address | None:
    """The address that `host` writes out, in any notation that the C resolver takes; None for a name.

    `127.0.0.1`, `127.1`, `2130706433`, `0x7f.1` and `0177.0.0.1` are all the same host, and so is `::1` in
    brackets or without.

    Raises:
        EgressRefused: looks like an address and is none, or could not be a host at all.
    """
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare:
        try:
            return IPv6Address(bare)
        except AddressValueError:
            raise EgressRefused(f"{host[:80]!r} is not an IPv6 address") from None
    dotless = bare.removesuffix(".")
    if _NUMERIC.fullmatch(dotless):
        try:
            return IPv4Address(socket.inet_aton(dotless))
        except OSError:
            raise EgressRefused(f"{host[:80]!r} is not an IPv4 address") from None
    if len(bare) > 254 or not all(_LABEL.fullmatch(label) for label in dotless.split(".")):
        raise EgressRefused(f"{host[:80]!r} is not a host name")
    return None


def canonical(host: str) -> str:
    """The one spelling of a host: lower case, no final dot, addresses in their usual form.

    Raises:
        EgressRefused: see `literal`.
    """
    address = literal(host)
    return str(address) if address is not None else host.lower().removesuffix(".")
