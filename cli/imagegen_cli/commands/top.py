"""`imagegen top`: live view of the GPUs."""

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager, suppress
from threading import Event
from typing import TYPE_CHECKING, Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options, open_client
from imagegen_cli.terminal import echo
from imagegen_client.fleet import as_json
from imagegen_client.fleet_watch import FleetWatch
from imagegen_common.command_line import NumberRange
from imagegen_protocol import BrokerUnreachableError

if TYPE_CHECKING:
    from rich.live import Live

_PIPE_WIDTH = 200
_STATS_TIMEOUT_SECONDS = 2.0
"""Time limit for an answer, after which a broker is shown as unreachable."""
_OTHER_BROKERS_SECONDS = 0.5
"""Further wait for the other brokers after the first answer."""
_KEY_POLL_SECONDS = 0.1


@click.command("top")
@click.option(
    "--interval",
    type=NumberRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between updates.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Print one table, measured over one interval, and exit; the default if stdout is no terminal.",
)
@click.option("--json", "json_once", is_flag=True, help="Print one snapshot as JSON and exit.")
@broker_options
def command(interval: float, once: bool, json_once: bool, **connection: Unpack[Connection]) -> None:
    """Show a live view of the GPUs with load and throughput. Press q or Ctrl-C to exit.

    The load bar shows running, waiting and free capacity of a GPU, followed by queue depth and capacity. Images
    per second cover the last 10 seconds; the trend shows the last updates. Columns that do not fit the terminal
    are left out. All given brokers are queried; an unreachable one is retried.

    \b
    Examples:
      imagegen top
      imagegen top --interval 5 --broker tcp://a:5555 --broker tcp://b:5555
      imagegen top --json | jq '.gpus[] | {worker, images_per_second}'
    """
    with ExitStack() as stack:
        clients = {
            endpoint: stack.enter_context(open_client({**connection, "brokers": (endpoint,)}))
            for endpoint in dict.fromkeys(connection["brokers"])
        }
        watch = FleetWatch(clients)
        _first_update(watch, connection)
        if json_once or once or not sys.stdout.isatty():
            Event().wait(interval)
            answers = watch.query(_STATS_TIMEOUT_SECONDS)
            wait(answers.values())
            watch.update(answers)
            if json_once:
                echo(json.dumps(as_json(watch.before, watch.now), indent=2, ensure_ascii=False))
            else:
                _print(watch)
        else:
            _live(watch, interval)


def _first_update(watch: FleetWatch, connection: Connection) -> None:
    """Wait for the first broker, then briefly for the others. Raises `BrokerUnreachableError` if none answers."""
    timeout = connection["connect_timeout"]
    answers = watch.query(timeout)
    wait(answers.values(), return_when=FIRST_COMPLETED)
    wait(answers.values(), timeout=_OTHER_BROKERS_SECONDS)
    watch.update(answers)
    if all(broker.lost_for is not None for broker in watch.now.brokers):
        tried = " or ".join(connection["brokers"])
        raise BrokerUnreachableError(f"no broker answered at {tried} within {timeout:.3g} s")


def _print(watch: FleetWatch) -> None:
    from imagegen_cli.console import EscapingConsole
    from imagegen_cli.dashboard.screen import screen

    console = EscapingConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(screen(watch.before, watch.now, watch.trends, width=console.width))


def _live(watch: FleetWatch, interval: float) -> None:
    from rich.console import RenderableType
    from rich.live import Live

    from imagegen_cli.console import EscapingConsole
    from imagegen_cli.dashboard.screen import screen

    console = EscapingConsole()
    hint = f"every {interval:g} s · q exits"

    def render() -> RenderableType:
        width, height = console.size
        return screen(watch.before, watch.now, watch.trends, width=width, height=height, hint=hint)

    live = Live(get_renderable=render, console=console, screen=True, auto_refresh=False)
    with suppress(KeyboardInterrupt), _quit_keys() as quit_pressed, live:
        while not _show(interval, quit_pressed, live):
            answers = watch.query(_STATS_TIMEOUT_SECONDS)
            while wait(answers.values(), timeout=_KEY_POLL_SECONDS).not_done:
                if quit_pressed(0):
                    return
            watch.update(answers)


def _show(seconds: float, quit_pressed: Callable[[float], bool], live: "Live") -> bool:
    """Show the view for `seconds`, redrawn when the window changes; return whether to quit."""
    end = time.monotonic() + seconds
    size = None
    while (rest := end - time.monotonic()) > 0:
        if live.console.size != size:
            size = live.console.size
            live.refresh()
        if quit_pressed(min(rest, _KEY_POLL_SECONDS)):
            return True
    return False


@contextmanager
def _quit_keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits up to the given seconds for the key q, and returns whether it was pressed."""
    if not sys.stdin.isatty():
        yield lambda seconds: Event().wait(seconds)
        return
    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)

    def quit_pressed(seconds: float) -> bool:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        # Ready without data: the terminal is closed.
        return bool(ready) and ((keys := os.read(keyboard, 64)) == b"" or b"q" in keys.lower())

    try:
        yield quit_pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)
