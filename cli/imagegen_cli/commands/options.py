"""Connection options shared by the subcommands, and completion of model names."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from imagegen_client.sync import DEFAULT_BROKER, Client
from imagegen_common.command_line import NumberRange
from imagegen_protocol import ImagegenError
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.keys import KeyFileError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

F = TypeVar("F", bound=Callable[..., Any])
Endpoints = tuple[str, ...]

_COMPLETION_SECONDS = 1.0


def _check_endpoints(context: click.Context, option: click.Parameter, endpoints: Endpoints) -> Endpoints:
    try:
        for endpoint in endpoints:
            parse_endpoint(endpoint)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return endpoints


class Connection(TypedDict):
    """Parameters that `broker_options` adds to a command."""

    brokers: Endpoints
    connect_timeout: float
    key: Path | None
    broker_key: Path | None


def broker_options(function: F) -> F:
    """Add `--broker` (as `brokers`), `--connect-timeout`, `--key` and `--broker-key`: see `Connection`."""
    for option, text in (
        ("--broker-key", "Public key file (.key) of the broker, if it requires keys."),
        ("--key", "Secret key file (.key_secret) of this client, if the broker requires keys."),
    ):
        variable = "IMAGEGEN_CLIENT_" + option.removeprefix("--").replace("-", "_").upper()
        function = click.option(
            option, type=click.Path(path_type=Path), envvar=variable, show_envvar=True, metavar="FILE", help=text
        )(function)
    function = click.option(
        "--connect-timeout",
        type=NumberRange(0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="Time limit for the first answer of a broker.",
    )(function)
    return click.option(
        "--broker",
        "brokers",
        multiple=True,
        default=(DEFAULT_BROKER,),
        show_default=True,
        envvar="IMAGEGEN_FRONTEND",
        show_envvar=True,
        callback=_check_endpoints,
        metavar="ENDPOINT",
        help="Frontend endpoint of the broker. Repeat the option (in the environment: separate by spaces) to fail "
        "over between several brokers.",
    )(function)


def complete_model(context: click.Context, option: click.Parameter, prefix: str) -> list[str]:
    """Return the fleet's models that begin with `prefix`; none if the broker does not answer in time."""
    brokers = context.params.get("brokers") or (DEFAULT_BROKER,)
    try:
        with Client(brokers, connect_timeout=_COMPLETION_SECONDS) as client:
            models: list[str] = client.stats(_COMPLETION_SECONDS).models
    except (ImagegenError, ValueError):
        return []
    return [model for model in models if model.startswith(prefix)]


def open_client(
    connection: Connection, *, retry_overloaded: bool = False, tracer_provider: "TracerProvider | None" = None
) -> Client:
    """Return a client of the brokers, not yet connected. Raises `click.UsageError` for invalid key files."""
    try:
        return Client(
            connection["brokers"],
            connect_timeout=connection["connect_timeout"],
            retry_overloaded=retry_overloaded,
            key=connection["key"],
            broker_key=connection["broker_key"],
            tracer_provider=tracer_provider,
        )
    except KeyFileError as error:
        raise click.UsageError(str(error)) from error
