"""Addresses that daemons bind, checked alike for all."""

import errno
import ipaddress


class ConfigError(ValueError):
    """A setting is wrong; the message says which, and what would be right."""


class NotBoundError(ConfigError):
    """An address can't be bound. `may_pass`: a predecessor holds it, or the network is not up yet."""

    def __init__(self, words: str, number: int | None) -> None:
        """`number`: the `errno` of the system."""
        super().__init__(words)
        self.may_pass = number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Split `HOST:PORT`. Raises `ConfigError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{name}: {address!r} is not an address; one looks like 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Say whether a bind to the host stays on this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
