"""The command `imagegen-gateway`: serve the HTTP API, and manage API keys."""

import asyncio
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from imagegen_common.addresses import ConfigError, errors_of
from imagegen_common.command_line import IntegerRange, NumberRange, SuggestingGroup
from imagegen_common.logs import FORMATS, LEVELS, log, set_up
from imagegen_common.settings import SettingsCommand, end_check, settings_options, usage_error
from imagegen_gateway.commands import add, list_, revoke, secret
from imagegen_gateway.config import (
    WORKER_NETWORKS,
    Settings,
    check_aliases,
    check_bind,
    check_networks,
    check_origin,
    check_tls,
)
from imagegen_protocol.endpoints import parse_address, parse_endpoint
from imagegen_protocol.keys import KeyFileError, read_curve_keys

_log = logging.getLogger("imagegen.gateway")

_FILE = click.Path(path_type=Path)
EXIT_FAILED = 1


class _Gateway(SettingsCommand, SuggestingGroup):
    """The command with settings; it serves if no subcommand is given."""


@click.group(
    cls=_Gateway,
    invoke_without_command=True,
    context_settings={"show_default": True, "auto_envvar_prefix": "IMAGEGEN_GATEWAY"},
)
@settings_options
@click.option("--http", default="127.0.0.1:8000", help="HOST:PORT to listen on; port 0 selects a free port.")
@click.option(
    "--broker",
    multiple=True,
    default=("tcp://127.0.0.1:5555",),
    envvar="IMAGEGEN_FRONTEND",
    metavar="ENDPOINT",
    help="Client endpoint of a broker; repeat it for brokers to fail over to.",
)
@click.option("--key", type=_FILE, help="The gateway's .key_secret file, for brokers that require keys.")
@click.option("--broker-key", type=_FILE, help="The broker's .key file, for brokers that require keys.")
@click.option(
    "--auth",
    type=click.Choice(("off", "keys")),
    default="off",
    help="'keys': require an API key for each request. 'off': require none; only on loopback addresses.",
)
@click.option(
    "--state-folder",
    type=click.Path(),
    default="~/.local/state/imagegen-gateway",
    help="Folder for keys and jobs; each gateway needs its own.",
)
@click.option(
    "--results-url",
    help="Where to store images: a path, or a URL that fsspec supports, such as s3://bucket/folder.  "
    "[default: results, in the state folder]",
)
@click.option(
    "--results-kept", type=NumberRange(1), default=86400.0, help="Seconds until images and ended jobs expire."
)
@click.option(
    "--default-response-format",
    type=click.Choice(("b64_json", "url")),
    default="b64_json",
    help="Format of images in responses if a request states none; requests for dall-e-… get URLs in any case.",
)
@click.option(
    "--model-alias",
    multiple=True,
    metavar="NAME=MODEL",
    help="Second name of a model, for clients with a fixed one such as dall-e-3; repeatable.",
)
@click.option(
    "--unknown-models",
    type=click.Choice(("reject", "default")),
    default="reject",
    help="Requests for models that the fleet does not serve: 'reject': 404; 'default': use the default model.",
)
@click.option(
    "--public-url", help="URL of this gateway for clients; prefix of image URLs.  [default: from each request]"
)
@click.option(
    "--cors-origin", multiple=True, help="Origin whose web pages may use the API; repeatable; '*' allows all."
)
@click.option(
    "--max-body-bytes",
    type=IntegerRange(1024),
    default=32 * 1024**2,
    help="Maximum length of a request body; longer ones get status 413.",
)
@click.option(
    "--max-connections",
    type=IntegerRange(1, 100_000),
    default=1000,
    help="Maximum number of connections; further ones get status 503.",
)
@click.option("--max-jobs", type=IntegerRange(1), default=10_000, help="Maximum number of unfinished jobs.")
@click.option(
    "--max-jobs-per-key",
    type=IntegerRange(1),
    default=1000,
    help="Maximum number of unfinished jobs of an API key.",
)
@click.option(
    "--max-job-bytes-per-key",
    type=IntegerRange(1),
    default=2 * 1024**3,
    help="Maximum size of the input images of an API key's unfinished jobs, on disk.",
)
@click.option(
    "--webhook-allow",
    multiple=True,
    metavar="NETWORK",
    help="Network that webhooks may reach in addition to public addresses, such as 10.0.0.0/8; repeatable.",
)
@click.option(
    "--worker-network",
    multiple=True,
    metavar="NETWORK",
    default=WORKER_NETWORKS,
    help="Network in which the page reads the metrics of workers, at the addresses that they state; repeatable.",
)
@click.option(
    "--webhook-attempts", type=IntegerRange(1, 100), default=8, help="Maximum number of attempts per webhook."
)
@click.option(
    "--webhook-retry",
    type=NumberRange(0.01),
    default=5.0,
    help="Seconds before the second attempt of a webhook; further delays are four times as long, up to an hour.",
)
@click.option(
    "--drain-timeout", type=NumberRange(0), default=30.0, help="Seconds for requests to finish after SIGTERM."
)
@click.option("--tls-certificate", type=_FILE, help="PEM file with the certificate chain; enables HTTPS.")
@click.option("--tls-key", type=_FILE, help="PEM file with the private key of the certificate.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Minimum level of log lines.")
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    help="Format of log lines on stderr; 'json' writes one JSON object per line.",
)
@click.version_option(package_name="imagegen-fleet")
@click.pass_context
def main(context: click.Context, /, state_folder: str, log_level: str, log_format: str, **options: Any) -> None:
    """Serve OpenAI's images API, durable jobs and a web page over HTTP, as a client of the brokers.

    Prints one line with its URL to stdout when it accepts requests. Jobs are stored in the state folder and
    resume after a restart. SIGTERM and Ctrl-C stop it.

    Options can also be set in the file of --config (--max-jobs is max_jobs there) and in the environment
    (IMAGEGEN_GATEWAY_MAX_JOBS). Options override the environment, and the environment overrides the file.

    \b
    Examples:
      imagegen-gateway
      imagegen-gateway keys add alice --requests-per-minute 60
      imagegen-gateway --http 0.0.0.0:8000 --auth keys --tls-certificate cert.pem --tls-key key.pem

    \b
    Exit codes:
      0   stopped by a signal, or the settings are valid (--check-config)
      1   any other failure; see the log
      2   a setting is invalid, or another gateway uses the state folder
      71  the address can't be bound: it is in use or not available yet
    """
    folder = Path(state_folder).expanduser()
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    try:
        settings = _settings(state_folder=folder, **options)
        read_curve_keys(settings.key, settings.broker_key)
        _check_installed()
        end_check(context)
    except (ConfigError, KeyFileError) as error:
        raise usage_error(context, error) from error
    set_up(log_level, log_format, own="imagegen.gateway")
    context.exit(_serve(context, settings))


def _settings(
    *,
    http: str,
    broker: tuple[str, ...],
    auth: str,
    public_url: str | None,
    cors_origin: tuple[str, ...],
    model_alias: tuple[str, ...],
    webhook_allow: tuple[str, ...],
    worker_network: tuple[str, ...],
    **settings: Any,
) -> Settings:
    """Return the validated settings; `settings` has those that are used unchanged. Raises `ConfigError`."""
    with errors_of("--http"):
        host, port = parse_address(http)
    check_bind(host, keys_required=auth == "keys")
    check_tls(settings["tls_certificate"], settings["tls_key"])
    return Settings(
        host=host,
        port=port,
        brokers=tuple(_endpoint(endpoint) for endpoint in broker),
        keys_required=auth == "keys",
        public_url=None if public_url is None else check_origin("--public-url", public_url, path=True),
        cors_origins=tuple(o if o == "*" else check_origin("--cors-origin", o) for o in cors_origin),
        model_aliases=check_aliases(model_alias),
        webhook_networks=check_networks("--webhook-allow", webhook_allow),
        worker_networks=check_networks("--worker-network", worker_network),
        **settings,
    )


def _endpoint(endpoint: str) -> str:
    with errors_of("--broker"):
        parse_endpoint(endpoint)
    return endpoint


def _check_installed() -> None:
    try:
        import_module("imagegen_gateway.server")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install imagegen-fleet[gateway]") from error


def _serve(context: click.Context, settings: Settings) -> int:
    """Serve until a signal; return the exit code."""
    from imagegen_gateway.database import STATE_FILES, DatabaseError, check_database
    from imagegen_gateway.image_store import ImageStore, default_url
    from imagegen_gateway.server import bind, serve
    from imagegen_gateway.state_folder import lock_state_folder, make_private

    # Images are private too, and the temporary files of all libraries.
    os.umask(0o077)
    try:
        make_private(settings.state_folder, *STATE_FILES)
        ImageStore.open_folder(settings.results_url or default_url(settings.state_folder))
        with lock_state_folder(settings.state_folder), bind(settings.host, settings.port) as listener:
            # Checked here for a one-line error; in the lifespan it would be a traceback.
            asyncio.run(check_database(settings.state_folder))
            host, port = listener.getsockname()[:2]
            scheme = "http" if settings.tls_certificate is None else "https"
            url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

            def on_start() -> None:
                click.echo(f"http={url}")
                log(
                    _log,
                    logging.INFO,
                    "gateway started",
                    http=url,
                    auth="keys" if settings.keys_required else "off",
                )
                if settings.keys_required and scheme == "http" and not settings.public_url:
                    log(_log, logging.WARNING, "API keys are sent unencrypted: configure TLS, or use a proxy")

            served = serve(settings, listener, on_start)
    except (ConfigError, DatabaseError) as error:
        raise usage_error(context, error) from error
    log(_log, logging.INFO, "gateway stopped")
    return 0 if served else EXIT_FAILED


@main.group("keys")
def keys() -> None:
    """Create, list and revoke API keys, whether or not the gateway runs."""


for command in (add, list_, revoke, secret):
    keys.add_command(command)
