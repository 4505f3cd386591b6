"""What an operator may set, checked."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imagegen_common.addresses import ConfigError, is_loopback
from imagegen_gateway.core.addresses import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one gateway; times in seconds."""

    brokers: tuple[str, ...]
    key: Path | None = None
    broker_key: Path | None = None
    keys_required: bool = False
    state_folder: Path
    results_url: str | None = None
    results_seconds: float = 86400.0
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024**2
    max_jobs: int = 10_000
    max_connections: int = 1000
    webhook_networks: tuple[Network, ...] = ()
    webhook_attempts: int = 8
    webhook_retry_seconds: float = 5.0
    drain_seconds: float = 30.0


def check_bind(host: str, *, keys_required: bool) -> None:
    """Raise `ConfigError` for a bind that would let strangers in."""
    if not keys_required and not is_loopback(host):
        raise ConfigError(
            f"--http: {host} can be reached from other machines, and no keys are asked for; bind 127.0.0.1, or "
            "say --auth keys (imagegen-gateway keys add NAME makes one)"
        )


def check_origin(name: str, url: str, *, path: bool = False) -> str:
    """Return an origin such as `https://example.org`; with `path`, one may follow. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{name}: {url!r} is not a URL: {error}") from error
    plain = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not plain or (parts.path and not path):
        raise ConfigError(f"{name}: {url!r} is not a URL; one looks like https://images.example.org")
    return url.rstrip("/")


def check_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that webhooks may reach beside public addresses. Raises `ConfigError`."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--webhook-allow: {error}; a network looks like 10.0.0.0/8") from error


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise `ConfigError` unless both are given and there, or neither is."""
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-certificate and --tls-key go together")
    for name, path in (("--tls-certificate", certificate), ("--tls-key", key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name}: there is no file {path}")
