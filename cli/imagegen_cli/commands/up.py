"""`imagegen up`: run a fleet on this machine in the foreground, with the daemons as child processes."""

import ctypes
import os
import select
import signal
import subprocess
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click

from imagegen_cli.doctor.machine_probes import find_program
from imagegen_cli.terminal import echo

_PR_SET_PDEATHSIG = 1
_POLL_MILLISECONDS = 500
_STOP_TIMEOUT_SECONDS = 60.0
"""Time limit for a daemon to stop, including the draining of workers, before it is killed."""
_PASSED_STATUSES = (2, 71, 78)
"""Exit statuses passed on: invalid setting, address in use, model that cannot be loaded."""
_libc = ctypes.CDLL(None, use_errno=True)

_CONFIG = click.Path(path_type=Path, dir_okay=False)


class DaemonExitedError(Exception):
    """A daemon exited by itself."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} exited with status {status}; see its log lines above")
        self.status = status


@click.command("up")
@click.option("--http", metavar="HOST:PORT", help="Address of the gateway.  [default: 127.0.0.1:8000]")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Model of the workers; may be given several times."
)
@click.option("--broker-config", type=_CONFIG, metavar="FILE", help="Configuration file of the broker.")
@click.option("--worker-config", type=_CONFIG, metavar="FILE", help="Configuration file of the workers.")
@click.option("--gateway-config", type=_CONFIG, metavar="FILE", help="Configuration file of the gateway.")
@click.option("--open", "open_page", is_flag=True, help="Open the gateway's page in the browser when it is ready.")
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER-OPTIONS]")
def command(
    http: str | None,
    models: tuple[str, ...],
    broker_config: Path | None,
    worker_config: Path | None,
    gateway_config: Path | None,
    open_page: bool,
    worker_options: tuple[str, ...],
) -> None:
    """Run a fleet on this machine until Ctrl-C.

    Starts a broker, a worker for each GPU and the gateway (imagegen-broker, imagegen-worker,
    imagegen-gateway) with the settings of their configuration files and environment variables. If one of them
    exits, the others are stopped. Ctrl-C waits for running requests; a second Ctrl-C does not (exit code 1).

    \b
    Examples:
      imagegen up --open
      imagegen up --model /srv/models/sdxl --http 127.0.0.1:9000
      imagegen up -- --backend simulated --gpu 0,1
    """
    broker = ["imagegen-broker", *_option("--config", broker_config)]
    worker = ["imagegen-worker", *_option("--config", worker_config)]
    worker += [word for model in models for word in ("--model", model)]
    gateway = ["imagegen-gateway", *_option("--config", gateway_config), *_option("--http", http)]
    for words in (broker, worker, gateway):
        path = find_program(words[0])
        if path is None:
            extras = "imagegen-fleet[broker,worker,gateway]"
            raise click.UsageError(f"{words[0]} is not installed; install {extras}")
        words[0] = path
    context, daemons = click.get_current_context(), _Daemons()
    try:
        with _interrupt_on_signals(), daemons:
            listening = _parse_fields(daemons.start("broker", broker, listen=True))
            daemons.start("workers", [*worker, "--broker", listening["backend"], *worker_options])
            started = daemons.start("gateway", [*gateway, "--broker", listening["frontend"]], listen=True)
            url = _parse_fields(started)["http"]
            echo(f"gateway listening on {url}; waiting for workers ...")
            daemons.watch(url, lambda: _report_ready(url, open_page))
    except DaemonExitedError as error:
        echo(f"error: {error}", err=True)
        context.exit(error.status if error.status in _PASSED_STATUSES else 1)
    except KeyboardInterrupt:
        echo("stopped")
        if daemons.killed:
            context.exit(1)


class _Daemons:
    """Child processes in their own sessions, so Ctrl-C does not reach them; leaving the context stops them."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.killed = False
        """Whether a daemon was killed because it did not stop in time, or a second signal arrived."""

    def __enter__(self) -> "_Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        # In this order: the gateway waits for its requests, and the broker passes on their results.
        names = [name for name in ("gateway", "workers", "broker") if name in self._processes]
        try:
            for name in names:
                self._processes[name].terminate()
                self._processes[name].wait(_STOP_TIMEOUT_SECONDS)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self.killed = True
            echo("killed the remaining daemons", err=True)
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    def start(self, name: str, words: Sequence[str], *, listen: bool = False) -> str:
        """Start a daemon; with `listen` return its line with the addresses. Raises `DaemonExitedError`."""
        process = self._processes[name] = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if listen else None,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        if not listen:
            return ""
        assert process.stdout is not None, "stdout is a pipe"
        line = process.stdout.readline()
        if not line:
            raise DaemonExitedError(name, process.wait())
        return line

    def watch(self, url: str, on_ready: Callable[[], object]) -> None:
        """Wait until a daemon exits, then raise `DaemonExitedError`; call `on_ready` when the gateway is ready."""
        poller = select.poll()
        watched = {os.pidfd_open(process.pid): name for name, process in self._processes.items()}
        try:
            for descriptor in watched:
                poller.register(descriptor, select.POLLIN)
            ready = False
            while not (exited := poller.poll(None if ready else _POLL_MILLISECONDS)):
                if ready := _is_ready(url):
                    on_ready()
            name = watched[exited[0][0]]
            raise DaemonExitedError(name, self._processes[name].wait())
        finally:
            for descriptor in watched:
                os.close(descriptor)


def _report_ready(url: str, open_page: bool) -> None:
    echo(f"ready: {url} (open it in a browser to generate images)")
    if open_page and not webbrowser.open(url):
        echo("no browser could be opened", err=True)


def _parse_fields(line: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in line.split())


def _option(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]


def _is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):  # URLError is an OSError
        return True
    return False


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM and SIGINT, even if a shell started the command with SIGINT ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
