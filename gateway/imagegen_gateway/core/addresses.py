"""Checks of addresses that users or workers name, to which the gateway may connect, and of webhook URLs."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All public IPv6 addresses; others are local or embed an IPv4 address."""
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
"""IPv4 networks without public hosts for which `is_global` is true."""
_MAX_HOST = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether webhooks may reach an address: it is public or in an allowed network."""
    if is_within(address, allowed):
        return True
    real = _unwrap(address)
    if isinstance(real, ipaddress.IPv6Address):
        return real in _UNICAST and real.is_global
    return real.is_global and not real.is_multicast and not any(real in network for network in _SPECIAL)


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    real = _unwrap(address)
    return any(real in network for network in networks if network.version == real.version)


def _unwrap(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address, which is the actual destination, or the address."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := address.ipv4_mapped or address.sixtofour) is not None:
            return inner
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return address.teredo[1]
    return address


def check_webhook_url(url: str, allowed: Sequence[Network]) -> str:
    """Return the URL. Raises `ValueError` if it is no HTTP URL or its address is not allowed.

    Host names are resolved and checked at each delivery, as their addresses can change.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"expected an http or https URL, got {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"expected an http or https URL, got {url!r}")
    if not url.isascii():
        raise ValueError("expected a URL in ASCII: percent-encode its path, and write its host as xn--…")
    labels = [] if ":" in host else host.removesuffix(".").split(".")
    if len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"expected a host name or an IP address, got {host[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected a URL without a user and a password")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return url
    if not is_allowed(address, allowed):
        raise ValueError(f"expected a public address, got {host}")
    return url
