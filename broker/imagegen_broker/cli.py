"""The command `imagegen-broker`."""

import logging
import math
import os
import signal
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import zmq

from imagegen_broker.config import check_endpoint, make_access
from imagegen_broker.core.records import Settings
from imagegen_broker.core.strategies import STRATEGIES
from imagegen_broker.memory import keep_freed_memory
from imagegen_broker.prometheus_targets import TargetsFile, check_targets_path
from imagegen_broker.server import Server
from imagegen_broker.tracing import Traces
from imagegen_common.addresses import ConfigError, NotBoundError, errors_of
from imagegen_common.logs import FORMATS, LEVELS, log, set_up
from imagegen_common.notify import SystemdNotifier
from imagegen_common.settings import SettingsCommand, end_check, settings_options, usage_error
from imagegen_common.tracing import TracingError, check_otlp_endpoint, open_tracer
from imagegen_protocol.endpoints import parse_address
from imagegen_protocol.keys import KeyFileError
from imagegen_protocol.limits import ID_BYTES

_log = logging.getLogger("imagegen.broker")

_FILE = click.Path(path_type=Path)


class _Seconds(click.FloatRange):
    """A range without "nan", which every comparison lets through, and without "inf"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fails as `FloatRange` does."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return number


@click.command(
    cls=SettingsCommand, context_settings={"show_default": True, "auto_envvar_prefix": "IMAGEGEN_BROKER"}
)
@settings_options
@click.option("--frontend", default="tcp://127.0.0.1:5555", help="Endpoint that clients dial; port 0 is any.")
@click.option("--backend", default="tcp://127.0.0.1:5556", help="Endpoint that workers dial; port 0 is any.")
@click.option(
    "--http",
    default="127.0.0.1:8080",
    help="HOST:PORT of /stats, /metrics, /healthz and /readyz; 'off' for none.",
)
@click.option(
    "--prometheus-targets",
    type=_FILE,
    help="A .json file to keep, from which Prometheus learns the workers' addresses (file_sd).  [default: none]",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="round-robin",
    envvar="GPU_LOAD_BALANCE_STRATEGY",
    help="Which worker gets the next request.",
)
@click.option("--default-model", help="For requests that name none.  [default: the first that a worker serves]")
@click.option("--heartbeat-interval", type=_Seconds(0.01, 60), default=1.0, help="Seconds between heartbeats.")
@click.option(
    "--liveness", type=click.IntRange(2, 100), default=3, help="Silent intervals after which a peer is dead."
)
@click.option(
    "--max-attempts", type=click.IntRange(1, 100), default=3, help="Workers that one request may take down."
)
@click.option(
    "--max-requests", type=click.IntRange(1), default=10_000, help="Requests held at a time; more are refused."
)
@click.option("--max-bytes", type=click.IntRange(1024), default=1024**3, help="Bytes of requests held at a time.")
@click.option(
    "--max-requests-per-client",
    type=click.IntRange(1),
    default=5_000,
    help="Requests of one client held at a time.",
)
@click.option(
    "--max-bytes-per-client",
    type=click.IntRange(1024),
    default=256 * 1024**2,
    help="Bytes of the requests of one client held at a time.",
)
@click.option(
    "--max-unacknowledged-per-client",
    type=click.IntRange(1),
    default=1024,
    help="Requests of one client at workers, or answered and not acknowledged; the others wait.",
)
@click.option("--max-clients", type=click.IntRange(1), default=20_000, help="Clients known at a time.")
@click.option(
    "--step-timeout",
    type=_Seconds(0),
    default=300.0,
    help="Seconds without a step after which a worker's device counts as hung, and its work moves on; 0: never.",
)
@click.option("--key", type=_FILE, help="The broker's .key_secret file (imagegen keygen); turns encryption on.")
@click.option("--authorized-clients", type=_FILE, help="Folder with the .key files of clients that may connect.")
@click.option("--authorized-workers", type=_FILE, help="Folder with the .key files of workers that may connect.")
@click.option(
    "--insecure/--no-insecure",
    default=False,
    help="Allow a bind that other machines can reach, without encryption.",
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Lines of this level and above.")
@click.option(
    "--log-format", type=click.Choice(FORMATS), default="text", help="'json' is one JSON object a line, on stderr."
)
@click.option(
    "--log-requests/--no-log-requests",
    default=True,
    help="A line at 'info' for the end of each request. It costs some 20 microseconds of the broker's one thread.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="An OpenTelemetry collector (http://HOST:4318) for the spans of traced requests.  [default: none]",
)
@click.version_option(package_name="imagegen-fleet")
def main(
    frontend: str,
    backend: str,
    http: str,
    prometheus_targets: Path | None,
    strategy: str,
    default_model: str | None,
    heartbeat_interval: float,
    liveness: int,
    max_attempts: int,
    max_requests: int,
    max_bytes: int,
    max_requests_per_client: int,
    max_bytes_per_client: int,
    max_unacknowledged_per_client: int,
    max_clients: int,
    step_timeout: float,
    key: Path | None,
    authorized_clients: Path | None,
    authorized_workers: Path | None,
    insecure: bool,
    log_level: str,
    log_format: str,
    log_requests: bool,
    otlp_endpoint: str | None,
) -> None:
    """Take requests from clients and hand them to GPU workers.

    Prints one line with the bound addresses to stdout once it serves. It keeps nothing on disk, and may be killed
    and started again at any time. SIGHUP reads the folders of authorized keys again. SIGTERM or Ctrl-C ends it.

    Each option may also stand in the file of --config (--max-clients is max_clients there), and in the
    environment (IMAGEGEN_BROKER_MAX_CLIENTS). Options win over the environment, and that over the file.

    \b
    Examples:
      imagegen-broker --strategy least-wait
      imagegen-broker --config configs/broker.toml --check-config
      imagegen-broker --frontend tcp://0.0.0.0:5555 --backend tcp://0.0.0.0:5556 \\
          --key keys/broker.key_secret --authorized-clients keys/clients --authorized-workers keys/workers

    \b
    Exit codes:
      0   told to end, or the settings are right (--check-config)
      1   everything that is not below; the log says what
      2   a setting is wrong
      71  an address can't be bound: it is taken, or not there yet
    """
    context = click.get_current_context()
    settings = Settings(
        epoch=os.urandom(ID_BYTES),
        strategy=strategy,
        interval=heartbeat_interval,
        liveness=liveness,
        max_attempts=max_attempts,
        max_requests=max_requests,
        max_bytes=max_bytes,
        max_requests_per_client=max_requests_per_client,
        max_bytes_per_client=max_bytes_per_client,
        max_unacknowledged_per_client=max_unacknowledged_per_client,
        max_clients=max_clients,
        step_timeout=step_timeout,
        default_model=default_model,
        version=version("imagegen-fleet"),
        log_requests=log_requests and log_level in ("debug", "info"),
        traces=otlp_endpoint is not None,
    )
    try:
        access = make_access(key, authorized_clients, authorized_workers)
        check_endpoint("--frontend", frontend, open_to_all=insecure or access is not None)
        check_endpoint("--backend", backend, open_to_all=insecure or access is not None)
        with errors_of("--http"):
            address = None if http == "off" else parse_address(http)
        if address is not None:
            _check_http()
        if prometheus_targets is not None:
            check_targets_path(prometheus_targets)
        if otlp_endpoint is not None:
            check_otlp_endpoint(otlp_endpoint)
        end_check(context)
        keep_freed_memory()
        notifier = SystemdNotifier(os.environ)
        targets = None if prometheus_targets is None else TargetsFile(prometheus_targets)
        show_workers = None if targets is None else targets.show
        traces = None if otlp_endpoint is None else Traces(open_tracer(otlp_endpoint, "imagegen-broker"))
        server = Server(settings, frontend, backend, access, notifier, show_workers, traces)
    except zmq.ZMQError as error:
        raise usage_error(context, NotBoundError(str(error), error.errno)) from error
    except (ConfigError, KeyFileError, TracingError) as error:
        raise usage_error(context, error) from error
    set_up(log_level, log_format, own="imagegen.broker")
    _serve(server, address, strategy, notifier)
    if targets is not None:
        targets.close()
    if traces is not None:
        traces.close()


def _check_http() -> None:
    try:
        import_module("imagegen_broker.http")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install imagegen-fleet[broker], or say --http off") from error


def _serve(server: Server, address: tuple[str, int] | None, strategy: str, notifier: SystemdNotifier) -> None:
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
            words = f"--http: can't bind {address[0]}:{address[1]}: {error}"
            raise usage_error(click.get_current_context(), NotBoundError(words, error.errno)) from error
    web = f"http://{http.address}" if http else "off"
    click.echo(f"frontend={server.frontend_endpoint} backend={server.backend_endpoint} http={web}")
    log(_log, logging.INFO, "serving", strategy=strategy, frontend=server.frontend_endpoint)
    notifier.ready("serving")
    started = time.monotonic()
    server.run()
    notifier.close()
    signal.set_wakeup_fd(-1)
    if http is not None:
        http.close()
    totals = server.core.ledger.counters
    log(_log, logging.INFO, "stopped", after_seconds=time.monotonic() - started, accepted=totals.accepted)
