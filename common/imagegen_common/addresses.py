"""Errors of settings, among them addresses that can't be bound."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting is wrong; the message says which, and what is allowed."""


class NotBoundError(ConfigError):
    """An address can't be bound. `may_pass`: another process holds it, or the network is not up yet."""

    def __init__(self, message: str, number: int | None, port: int | None = None) -> None:
        """`number`: the system's `errno`; `port`: TCP port whose listener is named if it is in use."""
        if number == errno.EADDRINUSE and port is not None:
            message += _listener_words(port)
        super().__init__(message)
        self.may_pass = number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def _listener_words(port: int) -> str:
    from imagegen_common.listeners import listener  # psutil is needed for this error only

    name, pid = listener(port) or ("", None)
    return "" if pid is None else f"; {name} (process {pid}) listens there"


@contextmanager
def errors_of(option: str) -> Iterator[None]:
    """Raise `ConfigError`, with the option's name in front, for a `ValueError` of the block."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
