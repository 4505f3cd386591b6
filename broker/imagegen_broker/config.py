"""Checks of settings. Each error names the value and says what is allowed."""

from pathlib import Path

from imagegen_broker.access import Access
from imagegen_common.addresses import ConfigError, errors_of
from imagegen_protocol.endpoints import parse_bind_endpoint
from imagegen_protocol.keys import read_key_pair


def make_access(
    key: Path | None, clients: Path | None, workers: Path | None, *, bind_names: bool = False
) -> Access | None:
    """Return the access control that three options configure; None if none of them is set.

    Raises `ConfigError` if only some are set, and `KeyFileError` if a file can't be used.
    """
    if key is None and clients is None and workers is None:
        if bind_names:
            raise ConfigError("--bind-worker-names needs keys: --key, --authorized-clients, --authorized-workers")
        return None
    if key is None or clients is None or workers is None:
        raise ConfigError(
            "--key, --authorized-clients and --authorized-workers must be set together: encryption needs all three"
        )
    return Access(read_key_pair(key), clients, workers, bind_names=bind_names)


def check_endpoint(name: str, endpoint: str, *, open_to_all: bool) -> str:
    """Return a bind endpoint. Raises `ConfigError` if it is invalid, or reachable without `open_to_all`."""
    with errors_of(name):
        parsed = parse_bind_endpoint(endpoint)
    if not open_to_all and not parsed.is_local:
        raise ConfigError(
            f"{name}: {endpoint} can be reached from other machines without encryption; bind 127.0.0.1, use keys "
            "(--key, --authorized-clients, --authorized-workers), or use --insecure on a private network"
        )
    return endpoint
