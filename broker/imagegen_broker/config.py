"""What an operator may set, checked: every wrong value gets an error that says what would be right."""

import ipaddress
from urllib.parse import urlsplit


class ConfigError(ValueError):
    """A setting is wrong; the message says which, and what would be right."""


def check_endpoint(name: str, endpoint: str, *, insecure: bool) -> str:
    """Return a bind endpoint, or raise `ConfigError`; an unencrypted bind beyond loopback needs `insecure`."""
    if endpoint.startswith("ipc://"):
        return endpoint
    parts = urlsplit(endpoint)
    host, _, port = parts.netloc.rpartition(":")
    if parts.scheme != "tcp" or not host or not (port.isdigit() or port == "*") or parts.path:
        raise ConfigError(f"{name}: {endpoint!r} is not an endpoint; one looks like tcp://127.0.0.1:5555")
    if port.isdigit() and int(port) > 65535:
        raise ConfigError(f"{name}: port {port} is out of range; ports go from 0 (any) to 65535")
    if not insecure and not is_loopback(host):
        raise ConfigError(
            f"{name}: {endpoint} can be reached from other machines, without encryption; bind 127.0.0.1, "
            "or say --insecure if the network is yours alone"
        )
    return endpoint


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
