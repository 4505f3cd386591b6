"""`imagegen up`: a whole fleet on this machine, in the foreground, by the commands of its daemons."""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click

_PR_SET_PDEATHSIG = 1
_LOOK_MILLISECONDS = 500
_PATIENCE_SECONDS = 60.0
"""How long a daemon may take to end, a worker that drains too, before it is killed."""
_TELLING = (2, 71, 78)
"""Exit statuses that say what is wrong: a setting, an address that is taken, or a model that can't be loaded."""
_libc = ctypes.CDLL(None, use_errno=True)

_CONFIG = click.Path(path_type=Path, dir_okay=False)


class EndedError(Exception):
    """A daemon ended by itself."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} ended with status {status}; its lines above say why")
        self.status = status


@click.command("up")
@click.option("--http", metavar="HOST:PORT", help="Where the gateway serves.  [default: 127.0.0.1:8000]")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="What the workers serve; see imagegen-worker."
)
@click.option("--broker-config", type=_CONFIG, metavar="FILE", help="Settings of the broker.")
@click.option("--worker-config", type=_CONFIG, metavar="FILE", help="Settings of the workers.")
@click.option("--gateway-config", type=_CONFIG, metavar="FILE", help="Settings of the gateway.")
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER-OPTIONS]")
def command(
    http: str | None,
    models: tuple[str, ...],
    broker_config: Path | None,
    worker_config: Path | None,
    gateway_config: Path | None,
    worker_options: tuple[str, ...],
) -> None:
    """Start a broker, a worker for each GPU and the gateway on this machine; Ctrl-C ends them all.

    Each is its own command (imagegen-broker, imagegen-worker, imagegen-gateway), with the settings that its file
    and its environment give. If one of them ends, so do the others. A second Ctrl-C doesn't wait for what runs.

    \b
    Examples:
      imagegen up
      imagegen up --model /srv/models/sdxl --http 127.0.0.1:9000
      imagegen up -- --backend simulated --gpu 0,1
    """
    broker = ["imagegen-broker", *_given("--config", broker_config)]
    worker = ["imagegen-worker", *_given("--config", worker_config)]
    worker += [word for model in models for word in ("--model", model)]
    gateway = ["imagegen-gateway", *_given("--config", gateway_config), *_given("--http", http)]
    for words in (broker, worker, gateway):
        words[0] = _find(words[0])
    context = click.get_current_context()
    try:
        with _ending_signals(), _Daemons() as daemons:
            said = _said(daemons.start("broker", broker, listen=True))
            daemons.start("workers", [*worker, "--broker", said["backend"], *worker_options])
            url = _said(daemons.start("gateway", [*gateway, "--broker", said["frontend"]], listen=True))["http"]
            click.echo(f"the gateway serves at {url}; the workers get ready ...")
            daemons.watch(url)
    except EndedError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(error.status if error.status in _TELLING else 1)
    except KeyboardInterrupt:
        click.echo("ended")


class _Daemons:
    """Child processes, out of the terminal's Ctrl-C; leaving the context ends them, the last first."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> "_Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        # The gateway has requests at the broker, which passes on the answers of the workers.
        names = [name for name in ("gateway", "workers", "broker") if name in self._processes]
        try:
            for name in names:
                self._processes[name].terminate()
                self._processes[name].wait(_PATIENCE_SECONDS)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            click.echo("killed what had not ended", err=True)
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    def start(self, name: str, words: Sequence[str], *, listen: bool = False) -> str:
        """Start a daemon; with `listen` return the line with which it says that it serves. Raises `EndedError`."""
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
        assert process.stdout is not None, "it was asked for"
        line = process.stdout.readline()
        if not line:
            raise EndedError(name, process.wait())
        return line

    def watch(self, url: str) -> None:
        """Wait until one of them ends, and raise `EndedError`; on the way say when images can be made."""
        poller = select.poll()
        watched = {os.pidfd_open(process.pid): name for name, process in self._processes.items()}
        try:
            for descriptor in watched:
                poller.register(descriptor, select.POLLIN)
            ready = False
            while not (ended := poller.poll(None if ready else _LOOK_MILLISECONDS)):
                if ready := _is_ready(url):
                    click.echo(f"ready: {url}")
            name = watched[ended[0][0]]
            raise EndedError(name, self._processes[name].wait())
        finally:
            for descriptor in watched:
                os.close(descriptor)


def _said(line: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in line.split())


def _given(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]


def _find(name: str) -> str:
    """Return the path of a command: beside this one, or where the shell finds it."""
    beside = Path(sys.argv[0]).resolve().with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise click.UsageError(f"{name} is not installed here; install imagegen-fleet[broker,worker,gateway]")
    return found


def _is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):  # URLError is an OSError
        return True
    return False


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _ending_signals() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, and SIGINT also where a shell has it ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    usual = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
