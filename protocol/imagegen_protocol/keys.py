"""CURVE keys in the certificate files of ZeroMQ: `NAME.key` (public) and `NAME.key_secret`."""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from imagegen_protocol.limits import MAX_PRIORITY, MIN_PRIORITY

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"
_KEY_CHARACTERS = 40
"""Length of a key in Z85."""
_MAX_FILE_BYTES = 65_536
"""Maximum size of a key file; `imagegen keygen` writes about 400 bytes."""


class KeyFileError(ValueError):
    """A key file can't be read or written; the message states the file and what is allowed."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Public and secret key of a peer, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Keys of a connection: the key pair of a client or a worker, and the public key of the broker in Z85."""

    own: KeyPair
    broker: bytes

    def apply(self, socket: "zmq.Socket[Any]") -> None:
        """Set the socket's keys; call it before `connect`."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.broker)


def generate_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new key pair into `folder`, with mode 600 for the secret key; return the (public, secret) paths.

    Raises `KeyFileError`, also if a key file of this name exists.
    """
    public, secret = folder / f"{name}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    for path in (public, secret):
        if path.exists():
            raise KeyFileError(f"{path} exists already; to replace the key, remove the file first")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Created with this mode before it has content, so that no other user can read it at any time.
        os.close(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        create_certificates(folder, name)
    except OSError as error:
        raise KeyFileError(f"can't write the keys of {name}: {error}") from error
    return public, secret


def read_key_pair(path: Path) -> KeyPair:
    """Read a `.key_secret` file. Raises `KeyFileError`."""
    public, secret = _read(path)
    if secret is None:
        raise KeyFileError(f"{path} contains no secret key; give the file that ends in {SECRET_SUFFIX}")
    return KeyPair(public, secret)


def read_public_key(path: Path) -> bytes:
    """Return the public key (Z85) of a `.key` file. Raises `KeyFileError`."""
    return _read(path)[0]


def read_curve_keys(own: str | Path | None, broker: str | Path | None) -> CurveKeys | None:
    """Read the files of `--key` and `--broker-key`; return None if both are None. Raises `KeyFileError`."""
    if own is None and broker is None:
        return None
    if own is None or broker is None:
        raise KeyFileError(
            "--key and --broker-key go together: give your own secret key and the broker's public key"
        )
    return CurveKeys(read_key_pair(Path(own)), read_public_key(Path(broker)))


@dataclass(frozen=True, slots=True)
class AllowedKeys:
    """The valid keys in a folder, and the problems of its other key files."""

    names: Mapping[bytes, str]
    """Names of the key files, without suffix, by public key (Z85)."""
    problems: Sequence[str]
    """Problem of each invalid `.key` file, with the file and the reason."""
    max_priorities: Mapping[bytes, int] = field(default_factory=dict)
    """Maximum priority of requests, by public key, of the files that state one."""


def read_allowed_keys(folder: Path) -> AllowedKeys:
    """Read all `.key` files in a folder; symbolic links are followed.

    The section `metadata` of a file may contain `max_priority`. An invalid file does not affect the others.
    Raises `KeyFileError` if the folder can't be read.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        words = (
            f"can't read the folder {folder}, which must contain the {PUBLIC_SUFFIX} files of the allowed peers"
        )
        raise KeyFileError(f"{words}: {error.strerror}") from error
    names: dict[bytes, str] = {}
    max_priorities: dict[bytes, int] = {}
    problems: list[str] = []
    for path in [folder / entry for entry in entries if entry.endswith(PUBLIC_SUFFIX)]:
        try:
            key, max_priority = read_public_key(path), _read_max_priority(path)
            names[key] = path.stem
            if max_priority is not None:
                max_priorities[key] = max_priority
        except KeyFileError as error:
            problems.append(str(error))
    return AllowedKeys(MappingProxyType(names), problems, MappingProxyType(max_priorities))


def _read(path: Path) -> tuple[bytes, bytes | None]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"can't read the key file {path}: it is not a regular file")  # a FIFO would block
        if status.st_size > _MAX_FILE_BYTES:
            words = f"it has {status.st_size} bytes, and a key file has at most {_MAX_FILE_BYTES}"
            raise KeyFileError(f"can't read the key file {path}: {words}")
        public, secret = load_certificate(path)
    except KeyFileError:
        raise
    except IndexError as error:
        raise KeyFileError(f"can't read the key file {path}: a line with a key has no = in it") from error
    except (OSError, ValueError) as error:
        raise KeyFileError(f"can't read the key file {path}: {error}") from error
    for key in (public, secret):
        if key is not None:
            _check(path, key)
    return public, secret


def _read_max_priority(path: Path) -> int | None:
    """Return `max_priority` of the section `metadata`; None without one. Raises `KeyFileError`."""
    section = ""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise KeyFileError(f"can't read the key file {path}: {error}") from error
    for line in lines:
        name, separator, value = (part.strip() for part in line.partition("#")[0].partition("="))
        if name and not separator:
            section = name
        elif section == "metadata" and name == "max_priority":
            return _parse_priority(path, value.strip("\"'"))
    return None


def _parse_priority(path: Path, text: str) -> int:
    with contextlib.suppress(ValueError):
        if MIN_PRIORITY <= (priority := int(text)) <= MAX_PRIORITY:
            return priority
    words = f"expected an integer from {MIN_PRIORITY} to {MAX_PRIORITY}, got {text[:40]!r}"
    raise KeyFileError(f"{path}: max_priority: {words}")


def _check(path: Path, key: bytes) -> None:
    if len(key) != _KEY_CHARACTERS:
        raise KeyFileError(f"{path}: a key has {_KEY_CHARACTERS} characters, not {len(key)}")
    if strange := sorted(set(key) - set(z85.Z85CHARS)):
        raise KeyFileError(f"{path}: {bytes(strange[:1])!r} is not allowed in a key, which is text in Z85")
