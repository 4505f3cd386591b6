"""How drawing gets on, on a terminal: an overall bar for several requests, and some of those that run."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagegen_cli.commands.generation import Watcher
from imagegen_cli.durations import clock, roughly
from imagegen_cli.prompts import Order
from imagegen_client.progress import Progress

MAX_ROWS = 8
"""Running requests shown at a time."""
_BAR_WIDTH = 24
_LABEL_WIDTH = 32


@dataclass(slots=True)
class Running:
    """A request on its way."""

    prompt: str
    since: float
    """When it was sent, or, once a worker has begun with it, that."""
    sign: Progress | None = None

    @property
    def drawn(self) -> bool:
        """Whether a worker has begun with it."""
        return self.sign is not None and not is_queued(self.sign)


@dataclass(slots=True)
class Board:
    """What there is to show; times in seconds of one clock."""

    total: int
    started: float
    done: int = 0
    failed: int = 0
    running: dict[int, Running] = field(default_factory=dict)


def picture(board: Board, now: float) -> RenderableType:
    """Return the bars: one for a single request, else the overall one and at most `MAX_ROWS` of those that run."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(max_width=_LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=_BAR_WIDTH)
    for _ in range(3):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    if board.total == 1:
        for one in board.running.values():
            _add(grid, Text(state(one.sign)), one, now, turn(one.sign))
        return grid
    _add_overall(grid, board, now)
    drawn = [one for one in board.running.values() if one.drawn]
    for one in drawn[:MAX_ROWS]:
        again = state(one.sign) if one.sign is not None and one.sign.attempt > 1 else ""
        _add(grid, Text(f"  {' '.join(one.prompt.split())}"), one, now, again)
    if words := ", ".join(_rest(board, len(drawn) - MAX_ROWS)):
        return Group(grid, Text(f"  {words}", style="dim", no_wrap=True, overflow="ellipsis"))
    return grid


def _rest(board: Board, left_out: int) -> Iterator[str]:
    """Yield what there is to say of the requests that have no bar."""
    if left_out > 0:
        yield f"{left_out} more being drawn"
    waiting = [one.sign for one in board.running.values() if not one.drawn]
    if waiting:
        yield f"{len(waiting)} waiting"
    placed = [(place, sign) for sign in waiting if sign is not None and (place := sign.place) is not None]
    if placed:
        yield f"the first: {turn(min(placed, key=lambda pair: pair[0])[1])}"


def _add_overall(grid: Table, board: Board, now: float) -> None:
    ended = board.done + board.failed
    elapsed = now - board.started
    left = f"about {roughly(elapsed / ended * (board.total - ended))} left" if ended else ""
    grid.add_row(
        Text("all prompts", style="bold"),
        ProgressBar(board.total, ended),
        Text(f"{ended}/{board.total}", style="green"),
        Text(clock(elapsed), style="yellow"),
        Text.assemble((f"{board.failed} failed  " if board.failed else "", "red"), (left, "cyan")),
    )


def _add(grid: Table, label: Text, one: Running, now: float, note: str) -> None:
    step, steps = (one.sign.step, one.sign.steps) if one.sign is not None else (0, 0)
    bar = ProgressBar(steps, step) if steps else ProgressBar(None, pulse=True, animation_time=now)
    count = Text(f"{step}/{steps}" if steps else "", style="green")
    grid.add_row(label, bar, count, Text(clock(now - one.since), style="yellow"), Text(note, style="yellow"))


def state(sign: Progress | None) -> str:
    """Return in words what a request is doing."""
    if sign is None or is_queued(sign):
        return "waiting"
    return f"drawing, attempt {sign.attempt}" if sign.attempt > 1 else "drawing"


def is_queued(sign: Progress) -> bool:
    """Say whether the request still waits at the broker."""
    return sign.state == "queued"


def turn(sign: Progress | None) -> str:
    """Return when it is the turn of a request that waits; nothing where the broker has not told."""
    if sign is None or not is_queued(sign) or sign.place is None:
        return ""
    seconds = "" if sign.seconds_to_start is None else f", in about {roughly(sign.seconds_to_start)}"
    return (f"{sign.place} before it" if sign.place else "next") + seconds


class ProgressDisplay(Watcher):
    """Shows a `Board` on the terminal of stderr while it is entered; `say` prints meanwhile."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.board = Board(total, now())
        self._now = now
        # The picture is drawn by a thread of its own, so that the clocks go on.
        self._lock = threading.Lock()
        self._live = Live(
            get_renderable=self._picture,
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=8,
            # Redirected, what is meant for a file would go to the terminal.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, order: Order) -> None:
        """Take in a request that is on its way."""
        with self._lock:
            self.board.running[order.index] = Running(order.prompt, self._now())

    def sign(self, order: Order, sign: Progress) -> None:
        """Take in a sign of progress."""
        with self._lock:
            running = self.board.running[order.index]
            begun = running.drawn
            running.sign = sign
            if running.drawn and not begun:
                running.since = self._now()

    def end(self, order: Order, *, good: bool) -> None:
        """Take in the end of a request."""
        with self._lock:
            del self.board.running[order.index]
            self.board.done += good
            self.board.failed += not good

    def say(self, line: str, *, err: bool = False) -> None:
        """Print a line, above the bars where it goes to the terminal too."""
        if err or sys.stdout.isatty():
            self._live.console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line)

    def _picture(self) -> RenderableType:
        with self._lock:
            return picture(self.board, self._now())
