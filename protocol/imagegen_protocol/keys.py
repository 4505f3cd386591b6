"""CURVE keys on disk, in ZeroMQ's own certificate files: `NAME.key` (public) and `NAME.key_secret`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.auth import create_certificates, load_certificate

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"
_KEY_CHARACTERS = 40
"""Length of a key in Z85."""


class KeyFileError(ValueError):
    """A key can't be read or written; the message says which file, and what would be right."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A peer's own keys, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DialKeys:
    """What a client or a worker dials a guarded broker with: its own pair, and the broker's public key."""

    own: KeyPair
    broker: bytes

    def apply(self, socket: "zmq.Socket[Any]") -> None:
        """Set the socket's keys; call it before `connect`."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.broker)


def generate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new pair into `folder`, the secret one readable by its owner alone; return (public, secret) paths.

    Raises `KeyFileError`; never overwrites a key.
    """
    public, secret = folder / f"{name}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    for path in (public, secret):
        if path.exists():
            raise KeyFileError(f"{path} is there already; remove it first if it is to be replaced")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Before a byte is written: nobody else may read it, not even for a moment.
        os.close(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        create_certificates(folder, name)
    except OSError as error:
        raise KeyFileError(f"can't write the keys of {name}: {error}") from error
    return public, secret


def read_pair(path: Path) -> KeyPair:
    """Read a `.key_secret` file. Raises `KeyFileError`."""
    public, secret = _read(path)
    if secret is None:
        raise KeyFileError(f"{path} has no secret key in it; give the file that ends in {SECRET_SUFFIX}")
    return KeyPair(public, secret)


def read_public(path: Path) -> bytes:
    """Return the public key (Z85) of a `.key` file. Raises `KeyFileError`."""
    return _read(path)[0]


def read_dial_keys(own: str | Path | None, broker: str | Path | None) -> DialKeys | None:
    """Read what `--key` and `--broker-key` name; None if neither does. Raises `KeyFileError`."""
    if own is None and broker is None:
        return None
    if own is None or broker is None:
        raise KeyFileError("--key and --broker-key go together: one's own secret key, and the broker's public one")
    return DialKeys(read_pair(Path(own)), read_public(Path(broker)))


def read_allowed(folder: Path) -> Mapping[bytes, str]:
    """Return the public keys of all `.key` files in a folder, each with its file's name. Raises `KeyFileError`."""
    if not folder.is_dir():
        raise KeyFileError(f"{folder} is not a folder; it should hold the {PUBLIC_SUFFIX} files of those allowed")
    return {read_public(path): path.stem for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}"))}


def _read(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"can't read the key file {path}: {error}") from error
    for key in (public, secret):
        if key is not None and len(key) != _KEY_CHARACTERS:
            raise KeyFileError(f"{path}: a key has {_KEY_CHARACTERS} characters, not {len(key)}")
    return public, secret
