"""The command `imagegen-gateway`: serves, and makes, lists and revokes keys."""

import asyncio
import logging
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from imagegen_client.endpoints import check_endpoint
from imagegen_common.addresses import ConfigError, parse_address
from imagegen_common.logs import FORMATS, LEVELS, log, set_up
from imagegen_common.settings import SettingsCommand, end_check, settings_options, usage_error
from imagegen_gateway.commands import add, list_, revoke, secret
from imagegen_gateway.config import Settings, check_bind, check_networks, check_origin, check_tls
from imagegen_protocol.keys import KeyFileError, read_dial_keys

_log = logging.getLogger("imagegen.gateway")

_FILE = click.Path(path_type=Path)
EXIT_FAILED = 1


class _Seconds(click.FloatRange):
    """A range without "nan", which every comparison lets through, and without "inf"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fails as `FloatRange` does."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return number


class _Gateway(SettingsCommand, click.Group):
    """A command with settings that serves when no subcommand is named."""


@click.group(
    cls=_Gateway,
    invoke_without_command=True,
    context_settings={"show_default": True, "auto_envvar_prefix": "IMAGEGEN_GATEWAY"},
)
@settings_options
@click.option("--http", default="127.0.0.1:8000", help="HOST:PORT to serve on; port 0 is any.")
@click.option(
    "--broker",
    multiple=True,
    default=("tcp://127.0.0.1:5555",),
    envvar="IMAGEGEN_FRONTEND",
    metavar="ENDPOINT",
    help="A broker's frontend; again for others to turn to when one is dead.",
)
@click.option("--key", type=_FILE, help="The gateway's own .key_secret file, for a broker that demands keys.")
@click.option("--broker-key", type=_FILE, help="The broker's .key file, if the broker demands keys.")
@click.option(
    "--auth",
    type=click.Choice(("off", "keys")),
    default="off",
    help="'keys': each request needs an API key. 'off': none does; only for binds to loopback.",
)
@click.option(
    "--state-folder",
    type=click.Path(),
    default="~/.local/state/imagegen-gateway",
    help="Where keys and jobs are kept; one gateway a folder.",
)
@click.option(
    "--results-url",
    help="Where images are kept: a path, or what fsspec takes, as s3://bucket/folder.  "
    "[default: results, in the state folder]",
)
@click.option("--results-kept", type=_Seconds(1), default=86400.0, help="Seconds that results are kept.")
@click.option(
    "--public-url", help="Where callers see this gateway, for the URLs it gives.  [default: as they called]"
)
@click.option("--cors-origin", multiple=True, help="A site whose pages may ask here; '*' for all.")
@click.option(
    "--max-body-bytes", type=click.IntRange(1024), default=32 * 1024**2, help="Longer requests are refused."
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 100_000),
    default=1000,
    help="Connections at a time; more are refused.",
)
@click.option("--max-jobs", type=click.IntRange(1), default=10_000, help="Unfinished jobs held at a time.")
@click.option(
    "--webhook-allow",
    multiple=True,
    metavar="NETWORK",
    help="A network that webhooks may reach beside public addresses, as 10.0.0.0/8.",
)
@click.option("--webhook-attempts", type=click.IntRange(1, 100), default=8, help="Calls of one webhook, at most.")
@click.option(
    "--webhook-retry",
    type=_Seconds(0.01),
    default=5.0,
    help="Seconds before the second call of a webhook; each later wait is four times as long, up to an hour.",
)
@click.option("--drain-timeout", type=_Seconds(0), default=30.0, help="Seconds that requests have on SIGTERM.")
@click.option("--tls-certificate", type=_FILE, help="PEM file with the certificate chain; turns HTTPS on.")
@click.option("--tls-key", type=_FILE, help="PEM file with the certificate's key.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Lines of this level and above.")
@click.option(
    "--log-format", type=click.Choice(FORMATS), default="text", help="'json' is one JSON object a line, on stderr."
)
@click.version_option(package_name="imagegen-fleet")
@click.pass_context
def main(
    context: click.Context,
    http: str,
    broker: tuple[str, ...],
    key: Path | None,
    broker_key: Path | None,
    auth: str,
    state_folder: str,
    results_url: str | None,
    results_kept: float,
    public_url: str | None,
    cors_origin: tuple[str, ...],
    max_body_bytes: int,
    max_connections: int,
    max_jobs: int,
    webhook_allow: tuple[str, ...],
    webhook_attempts: int,
    webhook_retry: float,
    drain_timeout: float,
    tls_certificate: Path | None,
    tls_key: Path | None,
    log_level: str,
    log_format: str,
) -> None:
    """Serve OpenAI's images API, and jobs, to whoever speaks HTTP; have the fleet make the images.

    Prints one line with its URL to stdout once it serves. Accepted jobs are kept in the state folder, and go on
    when it is started again. SIGTERM or Ctrl-C ends it.

    Each option may also stand in the file of --config (--max-jobs is max_jobs there), and in the environment
    (IMAGEGEN_GATEWAY_MAX_JOBS). Options win over the environment, and that over the file.

    \b
    Examples:
      imagegen-gateway
      imagegen-gateway keys add alice --requests-per-minute 60
      imagegen-gateway --http 0.0.0.0:8000 --auth keys --tls-certificate cert.pem --tls-key key.pem

    \b
    Exit codes:
      0  told to end, or the settings are right (--check-config)
      1  everything that is not below; the log says what
      2  a setting is wrong, or the state folder is another gateway's
      71  the address can't be bound: it is taken, or not there yet
    """
    folder = Path(state_folder).expanduser()
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    try:
        host, port = parse_address("--http", http)
        check_bind(host, keys_required=auth == "keys")
        check_tls(tls_certificate, tls_key)
        settings = Settings(
            brokers=tuple(_endpoint(each) for each in broker),
            key=key,
            broker_key=broker_key,
            keys_required=auth == "keys",
            state_folder=folder,
            results_url=results_url,
            results_seconds=results_kept,
            public_url=None if public_url is None else check_origin("--public-url", public_url, path=True),
            cors_origins=tuple(o if o == "*" else check_origin("--cors-origin", o) for o in cors_origin),
            max_body_bytes=max_body_bytes,
            max_connections=max_connections,
            max_jobs=max_jobs,
            webhook_networks=check_networks(webhook_allow),
            webhook_attempts=webhook_attempts,
            webhook_retry_seconds=webhook_retry,
            drain_seconds=drain_timeout,
        )
        read_dial_keys(key, broker_key)
        _check_installed()
        end_check(context)
    except (ConfigError, KeyFileError) as error:
        raise usage_error(context, error) from error
    set_up(log_level, log_format, own="imagegen.gateway")
    context.exit(_serve(context, settings, host, port, tls_certificate, tls_key))


def _endpoint(endpoint: str) -> str:
    try:
        return check_endpoint(endpoint)
    except ValueError as error:
        raise ConfigError(f"--broker: {str(error).removeprefix('broker: ')}") from error


def _check_installed() -> None:
    try:
        import_module("imagegen_gateway.server")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install imagegen-fleet[gateway]") from error


def _serve(
    context: click.Context, settings: Settings, host: str, port: int, certificate: Path | None, key: Path | None
) -> int:
    from imagegen_gateway.database import DatabaseError, check_database
    from imagegen_gateway.image_store import ImageStore, default_url
    from imagegen_gateway.server import bind, lock_state_folder, serve

    try:
        ImageStore.open_folder(settings.results_url or default_url(settings.state_folder))
        with lock_state_folder(settings.state_folder), bind(host, port) as listener:
            # Now, when it can be said in a line: the server would end with a traceback.
            asyncio.run(check_database(settings.state_folder))
            bound = listener.getsockname()
            shown = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
            url = f"{'http' if certificate is None else 'https'}://{shown}"

            def started() -> None:
                click.echo(f"http={url}")
                log(_log, logging.INFO, "serving", http=url, auth="keys" if settings.keys_required else "off")
                if settings.keys_required and certificate is None and not settings.public_url:
                    log(
                        _log,
                        logging.WARNING,
                        "keys travel unencrypted: give a certificate, or stand behind a proxy",
                    )

            ended_well = serve(settings, listener, started, certificate=certificate, key=key)
    except (ConfigError, DatabaseError) as error:
        raise usage_error(context, error) from error
    log(_log, logging.INFO, "stopped")
    return 0 if ended_well else EXIT_FAILED


@main.group("keys")
def keys() -> None:
    """Make, list and revoke API keys, while the gateway runs or not."""


for command in (add, list_, revoke, secret):
    keys.add_command(command)
