"""`imagegen top`: the GPUs, live."""

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
from imagegen_client.fleet import as_json
from imagegen_client.fleet_watch import Watch
from imagegen_protocol import BrokerUnreachableError

if TYPE_CHECKING:
    from rich.live import Live

_PIPE_WIDTH = 200
_LOST_SECONDS = 2.0
"""Without an answer for so long, a broker counts as lost, until it answers again."""
_OTHERS_SECONDS = 0.5
_KEY_SECONDS = 0.1


@click.command("top")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Print one table, measured over one interval, and end; so in a pipe.")
@click.option("--json", "json_once", is_flag=True, help="The same as JSON, and end.")
@broker_options
def command(interval: float, once: bool, json_once: bool, **connection: Unpack[Connection]) -> None:
    """Watch the GPUs: load, images a second, and how they got on lately. q or Ctrl-C leaves.

    The bar of the load shows what a GPU runs, what waits there, and what is free; then the queue depth and the
    capacity. Images a second are counted over the last 10 seconds; the trend shows each look. What has no room
    on the terminal is left out. With several brokers each is asked; one that is lost comes back by itself.

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
        watch = Watch(clients)
        _first_look(watch, connection)
        if json_once or once or not sys.stdout.isatty():
            Event().wait(interval)
            answers = watch.ask(_LOST_SECONDS)
            wait(answers.values())
            watch.take(answers)
            if json_once:
                click.echo(json.dumps(as_json(watch.before, watch.now), indent=2, ensure_ascii=False))
            else:
                _print(watch)
        else:
            _live(watch, interval)


def _first_look(watch: Watch, connection: Connection) -> None:
    """Wait for a first broker, then a little for the others. Raises `BrokerUnreachableError` if none answers."""
    patience = connection["connect_timeout"]
    answers = watch.ask(patience)
    wait(answers.values(), return_when=FIRST_COMPLETED)
    wait(answers.values(), timeout=_OTHERS_SECONDS)
    watch.take(answers)
    if all(broker.lost_for is not None for broker in watch.now.brokers):
        tried = " or ".join(connection["brokers"])
        raise BrokerUnreachableError(f"no broker answered at {tried} within {patience:.3g} s")


def _print(watch: Watch) -> None:
    from rich.console import Console

    from imagegen_cli.dashboard.screen import screen

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(screen(watch.before, watch.now, watch.trends, width=console.width))


def _live(watch: Watch, interval: float) -> None:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from imagegen_cli.dashboard.screen import screen

    console = Console()
    hint = f"every {interval:g} s · q leaves"

    def picture() -> RenderableType:
        width, height = console.size
        return screen(watch.before, watch.now, watch.trends, width=width, height=height, hint=hint)

    live = Live(get_renderable=picture, console=console, screen=True, auto_refresh=False)
    with suppress(KeyboardInterrupt), _keys() as left, live:
        while not _rest(interval, left, live):
            answers = watch.ask(_LOST_SECONDS)
            while wait(answers.values(), timeout=_KEY_SECONDS).not_done:
                if left(0):
                    return
            watch.take(answers)


def _rest(seconds: float, left: Callable[[float], bool], live: "Live") -> bool:
    """Show the picture until it is time for the next, again when the window changes; return whether to leave."""
    end = time.monotonic() + seconds
    size = None
    while (rest := end - time.monotonic()) > 0:
        if live.console.size != size:
            size = live.console.size
            live.refresh()
        if left(min(rest, _KEY_SECONDS)):
            return True
    return False


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield what waits so many seconds for a `q`, and says whether it came."""
    if not sys.stdin.isatty():
        yield lambda seconds: Event().wait(seconds)
        return
    keyboard = sys.stdin.fileno()
    usual = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)

    def left(seconds: float) -> bool:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        # Nothing to read though it is ready: the terminal has gone.
        return bool(ready) and ((keys := os.read(keyboard, 64)) == b"" or b"q" in keys.lower())

    try:
        yield left
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, usual)
