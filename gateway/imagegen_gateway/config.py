"""The settings of the gateway and their validation."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from imagegen_common.addresses import ConfigError
from imagegen_gateway.core.addresses import Network
from imagegen_gateway.core.models import ResponseFormat
from imagegen_protocol.endpoints import is_loopback

WORKER_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)
"""Default of `--worker-network`: loopback and private networks, without link-local services of cloud providers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one gateway, most of them options of the same name. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    brokers: tuple[str, ...]
    key: Path | None = None
    broker_key: Path | None = None
    keys_required: bool = False
    state_folder: Path
    results_url: str | None = None
    results_kept: float = 86400.0
    default_response_format: ResponseFormat = "b64_json"
    model_aliases: Mapping[str, str] = field(default_factory=dict)
    unknown_models: Literal["reject", "default"] = "reject"
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024**2
    max_jobs: int = 10_000
    max_jobs_per_key: int = 1000
    max_job_bytes_per_key: int = 2 * 1024**3
    max_connections: int = 1000
    webhook_networks: tuple[Network, ...] = ()
    worker_networks: tuple[Network, ...] = ()
    webhook_attempts: int = 8
    webhook_retry: float = 5.0
    drain_timeout: float = 30.0


def check_bind(host: str, *, keys_required: bool) -> None:
    """Raise `ConfigError` if other machines could send requests without a key."""
    if not keys_required and not is_loopback(host):
        raise ConfigError(
            f"--http: {host} is reachable from other machines, and keys are off; use 127.0.0.1, or --auth keys "
            "(imagegen-gateway keys add NAME creates a key)"
        )


def check_origin(name: str, url: str, *, path: bool = False) -> str:
    """Return an origin such as `https://example.org`; `path` allows a path. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(
            f"{name}: expected a URL such as https://images.example.org, got {url!r}: {error}"
        ) from error
    is_origin = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not is_origin or (parts.path and not path):
        raise ConfigError(f"{name}: expected a URL such as https://images.example.org, got {url!r}")
    return url.rstrip("/")


def check_networks(option: str, texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse the values of `option`, such as 10.0.0.0/8; return the networks. Raises `ConfigError`."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; expected a network such as 10.0.0.0/8") from error


def check_aliases(texts: Sequence[str]) -> dict[str, str]:
    """Parse the values of `--model-alias`, such as dall-e-3=sdxl; return models by alias. Raises `ConfigError`."""
    aliases: dict[str, str] = {}
    for text in texts:
        alias, equals, model = (part.strip() for part in text.partition("="))
        if not (alias and equals and model):
            raise ConfigError(f"--model-alias: expected NAME=MODEL such as dall-e-3=sdxl, got {text!r}")
        if alias in aliases:
            raise ConfigError(f"--model-alias: expected each name once, got {alias} again")
        aliases[alias] = model
    return aliases


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise `ConfigError` if only one of certificate and key is given, or if a file does not exist."""
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-certificate and --tls-key require each other")
    for name, path in (("--tls-certificate", certificate), ("--tls-key", key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name}: the file {path} does not exist")
