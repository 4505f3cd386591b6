"""Endpoints of sockets (`tcp://host:port`, `ipc://path`) and addresses of HTTP servers (`host:port`)."""

import ipaddress
import re
from dataclasses import dataclass

_TCP = re.compile(
    r"tcp://(?P<host>\*|[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]):(?P<port>[0-9]{1,5}|\*)"
)
_MAX_IPC_PATH_BYTES = 107
"""Maximum length of a path in the kernel's address of a Unix socket."""
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint. `ipc://` endpoints have a path; the others a host without brackets and a port."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether a socket bound to this endpoint is reachable from this machine only."""
        return bool(self.path) or is_loopback(self.host)


def parse_endpoint(text: str) -> Endpoint:
    """Parse an endpoint to connect to. Raises `ValueError`."""
    if "*" in text and text.startswith("tcp://"):
        raise ValueError(f"expected tcp://host:port or ipc://path, got {text!r}")
    return _parse(text, 1)


def parse_bind_endpoint(text: str) -> Endpoint:
    """Parse an endpoint to bind: port 0 or `*` is any free one, host `*` all interfaces. Raises `ValueError`."""
    return _parse(text, 0)


def _parse(text: str, min_port: int) -> Endpoint:
    if match := _TCP.fullmatch(text):
        port = 0 if match["port"] == "*" else int(match["port"])
        if not min_port <= port <= _MAX_PORT:
            raise ValueError(f"expected a port of {min_port} ... {_MAX_PORT}, got {text!r}")
        return Endpoint(match["host"].strip("[]"), port)
    path = text.removeprefix("ipc://")
    if path != text and path and not re.search(r"\s", path):
        if len(path.encode()) > _MAX_IPC_PATH_BYTES:
            raise ValueError(f"expected a path of at most {_MAX_IPC_PATH_BYTES} bytes, got {text!r}")
        return Endpoint(path=path)
    raise ValueError(f"expected tcp://host:port or ipc://path, got {text!r}")


def parse_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`; the host has no brackets. Raises `ValueError`."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise ValueError(f"{text!r} is not an address; one looks like 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Return whether a host, with or without brackets, is this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
