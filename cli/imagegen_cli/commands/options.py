"""What the subcommands share: the options that name the brokers, and the completion of models."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from imagegen_client.sync import DEFAULT_BROKER, Client
from imagegen_protocol import ImagegenError
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.keys import KeyFileError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

F = TypeVar("F", bound=Callable[..., Any])
Endpoints = tuple[str, ...]

_COMPLETION_SECONDS = 1.0


def _check(context: click.Context, option: click.Parameter, endpoints: Endpoints) -> Endpoints:
    try:
        for endpoint in endpoints:
            parse_endpoint(endpoint)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return endpoints


class Connection(TypedDict):
    """What `broker_options` adds to a command."""

    brokers: Endpoints
    connect_timeout: float
    key: Path | None
    broker_key: Path | None


def broker_options(function: F) -> F:
    """Add `--broker` (as `brokers`), `--connect-timeout`, `--key` and `--broker-key`: see `Connection`."""
    for option, words in (
        ("--broker-key", "The broker's .key file, if the broker demands keys."),
        ("--key", "One's own .key_secret file, if the broker demands keys (imagegen keygen)."),
    ):
        variable = "IMAGEGEN_CLIENT_" + option.removeprefix("--").replace("-", "_").upper()
        function = click.option(
            option, type=click.Path(path_type=Path), envvar=variable, show_envvar=True, metavar="FILE", help=words
        )(function)
    function = click.option(
        "--connect-timeout",
        type=click.FloatRange(0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for a first sign of a broker.",
    )(function)
    return click.option(
        "--broker",
        "brokers",
        multiple=True,
        default=(DEFAULT_BROKER,),
        show_default=True,
        envvar="IMAGEGEN_FRONTEND",
        show_envvar=True,
        callback=_check,
        metavar="ENDPOINT",
        help="The broker's frontend. Give it again (in the environment: separate by spaces) for more brokers to "
        "turn to when one is dead.",
    )(function)


def complete_model(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """Return the fleet's models that begin so; the broker has a second to answer."""
    given = context.params.get("brokers") or (DEFAULT_BROKER,)
    try:
        with Client(given, connect_timeout=_COMPLETION_SECONDS) as client:
            models: list[str] = client.stats(_COMPLETION_SECONDS).models
    except (ImagegenError, ValueError):
        return []
    return [model for model in models if model.startswith(begun)]


def open_client(
    connection: Connection, *, retry_overloaded: bool = False, tracer_provider: "TracerProvider | None" = None
) -> Client:
    """Return a client of the brokers; nothing is sent yet. Raises `click.UsageError` for unusable keys."""
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
