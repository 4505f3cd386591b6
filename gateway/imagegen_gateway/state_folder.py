"""The state folder: private from its creation, and used by one gateway."""

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagegen_common.addresses import ConfigError
from imagegen_common.logs import log

_log = logging.getLogger("imagegen.gateway")

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(folder: Path, *files: str) -> None:
    """Create a folder that only its owner can enter, and remove other users' permissions of existing `files`.

    Raises `ConfigError` if it can't be created. Only logs what it can't change, such as the root of a volume.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder, *(folder / name for name in files)):
            _close_to_others(path)
    except OSError as error:
        raise ConfigError(f"--state-folder: can't use {folder}: {error.strerror}") from error


def _close_to_others(path: Path) -> None:
    """Remove the permissions of the group and of other users from a file, if it exists. Raises `OSError`."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not mode & _OTHERS:
        return
    try:
        path.chmod(mode & ~_OTHERS)
    except PermissionError:
        log(_log, logging.WARNING, "other users have permissions", path=str(path), mode=f"{mode:o}")
    else:
        log(_log, logging.WARNING, "permissions of other users removed", path=str(path), mode=f"{mode:o}")


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read, unless it exists. Raises `OSError`."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextmanager
def lock_state_folder(folder: Path) -> Iterator[None]:
    """Lock the state folder during the block, so that one gateway runs its jobs. Raises `ConfigError`."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"--state-folder: can't use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(f"--state-folder: another gateway uses {folder}") from error
    try:
        yield
    finally:
        os.close(handle)
