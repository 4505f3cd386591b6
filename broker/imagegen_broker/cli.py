"""The command `imagegen-broker`."""

import logging
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import zmq

from imagegen_broker.access import Access
from imagegen_broker.config import check_endpoint, make_access
from imagegen_broker.core.records import MIN_FETCH_WINDOW_BYTES, Settings
from imagegen_broker.memory import keep_freed_memory, limit_memory
from imagegen_broker.prometheus_targets import TargetsFile, check_targets_path
from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_broker.server import Server
from imagegen_broker.tracing import Traces
from imagegen_common.addresses import ConfigError, NotBoundError, errors_of
from imagegen_common.command_line import IntegerRange, NumberRange
from imagegen_common.descriptors import raise_descriptor_limit
from imagegen_common.logs import FORMATS, LEVELS, log, set_up
from imagegen_common.notify import SystemdNotifier
from imagegen_common.settings import SettingsCommand, end_check, settings_options, usage_error
from imagegen_common.tracing import TracingError, check_otlp_endpoint, open_tracer
from imagegen_protocol.endpoints import parse_address
from imagegen_protocol.keys import KeyFileError
from imagegen_protocol.limits import DEFAULT_FETCH_WINDOW_BYTES, ID_BYTES, MAX_PAYLOAD_BYTES, MAX_TIMEOUT_SECONDS

_log = logging.getLogger("imagegen.broker")

_OTHER_DESCRIPTORS = 2000
"""Descriptors for workers, HTTP and files."""
_FILE = click.Path(path_type=Path)


@click.command(
    cls=SettingsCommand, context_settings={"show_default": True, "auto_envvar_prefix": "IMAGEGEN_BROKER"}
)
@settings_options
@click.option(
    "--frontend",
    default="tcp://127.0.0.1:5555",
    help="Endpoint that clients connect to; port 0 binds any free port.",
)
@click.option(
    "--backend",
    default="tcp://127.0.0.1:5556",
    help="Endpoint that workers connect to; port 0 binds any free port.",
)
@click.option(
    "--http",
    default="127.0.0.1:8080",
    help="HOST:PORT of /stats, /metrics, /healthz and /readyz; 'off' disables HTTP.",
)
@click.option(
    "--prometheus-targets",
    type=_FILE,
    help="A .json file with the workers' addresses to maintain for Prometheus (file_sd).  [default: none]",
)
@click.option(
    "--strategy",
    type=click.Choice(sorted(STRATEGIES)),
    default="least-wait",
    envvar="GPU_LOAD_BALANCE_STRATEGY",
    help="How to choose the worker for the next request.",
)
@click.option(
    "--default-model", help="Model of requests that name none.  [default: the first that a worker serves]"
)
@click.option("--heartbeat-interval", type=NumberRange(0.01, 60), default=1.0, help="Seconds between heartbeats.")
@click.option(
    "--liveness",
    type=IntegerRange(2, 100),
    default=3,
    help="Heartbeat intervals without a message after which a peer counts as dead.",
)
@click.option(
    "--max-attempts",
    type=IntegerRange(1, 100),
    default=3,
    help="Workers that may die while running a request before it ends in an error.",
)
@click.option(
    "--max-requests",
    type=IntegerRange(1),
    default=10_000,
    help="Maximum number of requests held at a time; more are rejected.",
)
@click.option(
    "--max-queue-seconds",
    type=NumberRange(0, MAX_TIMEOUT_SECONDS),
    default=0.0,
    help="Predicted wait in seconds beyond which new requests are rejected; 0: no limit.",
)
@click.option(
    "--max-bytes",
    type=IntegerRange(1024),
    default=1024**3,
    help="Maximum size of all requests held at a time, in bytes.",
)
@click.option(
    "--max-requests-per-client",
    type=IntegerRange(1),
    default=5_000,
    help="Maximum number of requests held for one client.",
)
@click.option(
    "--max-bytes-per-client",
    type=IntegerRange(1024),
    default=256 * 1024**2,
    help="Maximum size of the requests held for one client, in bytes.",
)
@click.option(
    "--max-unacknowledged-per-client",
    type=IntegerRange(1),
    default=1024,
    help="Maximum number of one client's requests that are at workers, or answered and not acknowledged; the "
    "others wait. If twice the capacity of all workers is more, that is the maximum.",
)
@click.option(
    "--fetch-window-bytes",
    type=IntegerRange(MIN_FETCH_WINDOW_BYTES, MAX_PAYLOAD_BYTES),
    default=DEFAULT_FETCH_WINDOW_BYTES,
    help="Maximum bytes of images on the way to one client or worker that it has not confirmed.",
)
@click.option(
    "--max-transfer-bytes",
    type=IntegerRange(MIN_FETCH_WINDOW_BYTES),
    default=1024**3,
    help="Maximum bytes of images on the way to all clients; each client gets a share of it, but at least 64 KiB.",
)
@click.option(
    "--max-memory",
    type=IntegerRange(0),
    default=4 * 1024**3,
    help="Resident memory in bytes beyond which the broker exits, to be restarted; 0: no maximum. A connection "
    "can fill memory before the broker sees its message.",
)
@click.option("--max-clients", type=IntegerRange(1), default=20_000, help="Maximum number of clients at a time.")
@click.option(
    "--step-timeout",
    type=NumberRange(0),
    default=300.0,
    help="Seconds without a denoising step after which a worker counts as hung and its requests are requeued; "
    "0: never.",
)
@click.option("--key", type=_FILE, help="The broker's .key_secret file (imagegen keygen); enables encryption.")
@click.option("--authorized-clients", type=_FILE, help="Folder with the .key files of clients that may connect.")
@click.option("--authorized-workers", type=_FILE, help="Folder with the .key files of workers that may connect.")
@click.option(
    "--bind-worker-names/--no-bind-worker-names",
    default=False,
    help="Let the worker with the key NAME.key register only as NAME, or as NAME- and something more.",
)
@click.option(
    "--insecure/--no-insecure",
    default=False,
    help="Allow unencrypted connections from other machines.",
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Least severe level to log.")
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    help="Format of log lines on stderr; 'json' is one object per line.",
)
@click.option(
    "--log-requests/--no-log-requests",
    default=True,
    help="Log the end of each request at 'info'. A line takes about 20 µs of the broker's thread.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="OpenTelemetry collector (http://HOST:4318) that receives the spans of traced requests.  [default: none]",
)
@click.version_option(package_name="imagegen-fleet")
def main(**options: Any) -> None:
    """Accept requests from clients and dispatch them to GPU workers.

    Prints one line with the bound addresses to stdout when it is ready. It stores nothing on disk, and may be
    killed and restarted at any time. SIGHUP reloads the folders of authorized keys. SIGTERM or Ctrl-C stops it.

    Each option can also be set in the file of --config (as max_clients for --max-clients) or in the environment
    (as IMAGEGEN_BROKER_MAX_CLIENTS). Options take precedence over the environment, and that over the file.

    \b
    Examples:
      imagegen-broker --strategy least-wait
      imagegen-broker --config configs/broker.toml --check-config
      imagegen-broker --frontend tcp://0.0.0.0:5555 --backend tcp://0.0.0.0:5556 \\
          --key keys/broker.key_secret --authorized-clients keys/clients --authorized-workers keys/workers

    \b
    Exit codes:
      0   stopped by a signal, or the settings are valid (--check-config)
      1   any other failure; see the log
      2   a setting is invalid
      71  an address can't be bound: it is in use, or does not exist yet
      75  the process needed more than --max-memory
    """
    context = click.get_current_context()
    targets_path, otlp_endpoint = options["prometheus_targets"], options["otlp_endpoint"]
    try:
        access, http_address = _check(options)
        end_check(context)
        keep_freed_memory()
        # Connections are counted only after their handshake.
        raise_descriptor_limit(2 * options["max_clients"] + _OTHER_DESCRIPTORS)
        notifier = SystemdNotifier(os.environ)
        targets = None if targets_path is None else TargetsFile(targets_path)
        show_workers = None if targets is None else targets.show
        traces = None if otlp_endpoint is None else Traces(open_tracer(otlp_endpoint, "imagegen-broker"))
        endpoints = options["frontend"], options["backend"]
        server = Server(_settings(options), *endpoints, access, notifier, show_workers, traces)
    except zmq.ZMQError as error:
        port = re.search(r":(\d+)\b", str(error))
        not_bound = NotBoundError(str(error), error.errno, int(port[1]) if port else None)
        raise usage_error(context, not_bound) from error
    except (ConfigError, KeyFileError, TracingError) as error:
        raise usage_error(context, error) from error
    set_up(options["log_level"], options["log_format"], own="imagegen.broker")
    _serve(server, http_address, options["strategy"], notifier, options["max_memory"])
    if targets is not None:
        targets.close()
    if traces is not None:
        traces.close()


def _settings(options: Mapping[str, Any]) -> Settings:
    """Return the settings of the core, most of which are options of the same name."""
    named = {each.name: options[each.name] for each in fields(Settings) if each.name in options}
    named["log_requests"] = options["log_requests"] and options["log_level"] in ("debug", "info")
    return Settings(
        epoch=os.urandom(ID_BYTES),
        secret=os.urandom(32),
        interval=options["heartbeat_interval"],
        version=version("imagegen-fleet"),
        traces=options["otlp_endpoint"] is not None,
        **named,
    )


def _check(options: Mapping[str, Any]) -> tuple[Access | None, tuple[str, int] | None]:
    """Return the access control and the address of HTTP. Raises `ConfigError` or `KeyFileError`."""
    folders = options["authorized_clients"], options["authorized_workers"]
    access = make_access(options["key"], *folders, bind_names=options["bind_worker_names"])
    for name in ("frontend", "backend"):
        check_endpoint(f"--{name}", options[name], open_to_all=options["insecure"] or access is not None)
    with errors_of("--http"):
        http_address = None if options["http"] == "off" else parse_address(options["http"])
    if http_address is not None:
        _check_http()
    if options["prometheus_targets"] is not None:
        check_targets_path(options["prometheus_targets"])
    if options["otlp_endpoint"] is not None:
        check_otlp_endpoint(options["otlp_endpoint"])
    return access, http_address


def _check_http() -> None:
    try:
        import_module("imagegen_broker.http")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install imagegen-fleet[broker], or use --http off") from error


def _serve(
    server: Server, address: tuple[str, int] | None, strategy: str, notifier: SystemdNotifier, max_memory: int
) -> None:
    signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(signal.SIGHUP, lambda *_: server.reload())
    http = None
    if address is not None:
        from imagegen_broker.http import HttpServer

        try:
            http = HttpServer(*address, server.snapshot)
        except OSError as error:
            text = f"--http: can't bind {address[0]}:{address[1]}: {error}"
            raise usage_error(click.get_current_context(), NotBoundError(text, error.errno, address[1])) from error
    web = f"http://{http.address}" if http else "off"
    click.echo(f"frontend={server.frontend_endpoint} backend={server.backend_endpoint} http={web}")
    log(_log, logging.INFO, "broker started", strategy=strategy, frontend=server.frontend_endpoint)
    notifier.ready("serving")
    started = time.monotonic()
    with limit_memory(max_memory):
        server.run()
    notifier.close()
    signal.set_wakeup_fd(-1)
    if http is not None:
        http.close()
    totals = server.core.table.counters
    log(_log, logging.INFO, "broker stopped", uptime_seconds=time.monotonic() - started, accepted=totals.accepted)
