"""Which endpoints can be dialled: a wrong one is refused at once, not by the socket later."""

import re

_TCP = re.compile(r"tcp://([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]):(\d{1,5})")
_MAX_IPC_PATH_BYTES = 107
"""What fits into the kernel's address of a Unix socket."""


def check_endpoint(endpoint: str) -> str:
    """Return `endpoint` as it is. Raises `ValueError` saying what one looks like."""
    if match := _TCP.fullmatch(endpoint):
        if 1 <= int(match[3]) <= 65535:
            return endpoint
        raise ValueError(f"broker: expected a port of 1 ... 65535, got {endpoint!r}")
    path = endpoint.removeprefix("ipc://")
    if path != endpoint and path and not re.search(r"\s", path):
        if len(path.encode()) <= _MAX_IPC_PATH_BYTES:
            return endpoint
        raise ValueError(f"broker: expected a path of at most {_MAX_IPC_PATH_BYTES} bytes, got {endpoint!r}")
    raise ValueError(f"broker: expected tcp://host:port or ipc://path, got {endpoint!r}")
