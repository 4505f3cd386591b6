"""Checks of settings. Each error names the value and says what is allowed."""

from pathlib import Path
from urllib.parse import urlsplit

from imagegen_broker.access import Access
from imagegen_common.addresses import ConfigError, is_loopback
from imagegen_protocol.keys import read_pair


def make_access(key: Path | None, clients: Path | None, workers: Path | None) -> Access | None:
    """Return the access control that three options configure; None if none of them is set.

    Raises `ConfigError` if only some are set, and `KeyFileError` if a file can't be used.
    """
    if key is None and clients is None and workers is None:
        return None
    if key is None or clients is None or workers is None:
        raise ConfigError(
            "--key, --authorized-clients and --authorized-workers must be set together: encryption needs all three"
        )
    return Access(read_pair(key), clients, workers)


def check_endpoint(name: str, endpoint: str, *, open_to_all: bool) -> str:
    """Return a bind endpoint. Raises `ConfigError` if it is invalid, or reachable without `open_to_all`."""
    if endpoint.startswith("ipc://"):
        return endpoint
    parts = urlsplit(endpoint)
    host, _, port = parts.netloc.rpartition(":")
    if parts.scheme != "tcp" or not host or not (port.isdigit() or port == "*") or parts.path:
        raise ConfigError(f"{name}: {endpoint!r} is not an endpoint; one looks like tcp://127.0.0.1:5555")
    if port.isdigit() and int(port) > 65535:
        raise ConfigError(f"{name}: port {port} is out of range; valid are 0 (any free port) to 65535")
    if not open_to_all and not is_loopback(host):
        raise ConfigError(
            f"{name}: {endpoint} can be reached from other machines without encryption; bind 127.0.0.1, use keys "
            "(--key, --authorized-clients, --authorized-workers), or use --insecure on a private network"
        )
    return endpoint
