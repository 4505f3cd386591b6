"""Progress bars on a terminal: one for all prompts, and one for each running request."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagegen_cli.commands.generation import ProgressView
from imagegen_cli.console import EscapingConsole
from imagegen_cli.durations import format_duration, format_estimate
from imagegen_cli.prompts import PreparedRequest
from imagegen_cli.terminal import echo
from imagegen_client.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

MAX_ROWS = 8
"""Maximum number of running requests shown."""
_BAR_WIDTH = 24
_LABEL_WIDTH = 32


@dataclass(slots=True)
class RequestState:
    """An unfinished request; `since` in seconds of the display's clock."""

    prompt: str
    since: float
    """Time at which it was submitted or, if it is running, started."""
    progress: Progress | None = None

    @property
    def is_running(self) -> bool:
        """Whether a worker has started it."""
        return self.progress is not None and not is_queued(self.progress)


@dataclass(slots=True)
class DisplayState:
    """Numbers and requests to show; times in seconds of one clock."""

    total: int
    started: float
    done: int = 0
    failed: int = 0
    running: dict[int, RequestState] = field(default_factory=dict)


def render(state: DisplayState, now: float) -> RenderableType:
    """Return one bar for a single request, else an overall bar and at most `MAX_ROWS` running requests."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(max_width=_LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=_BAR_WIDTH)
    for _ in range(3):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    if state.total == 1:
        for one in state.running.values():
            _add(grid, Text(state_text(one.progress)), one, now, position_text(one.progress))
        return grid
    _add_overall(grid, state, now)
    running = [one for one in state.running.values() if one.is_running]
    for one in running[:MAX_ROWS]:
        again = state_text(one.progress) if one.progress is not None and one.progress.attempt > 1 else ""
        _add(grid, Text(f"  {' '.join(one.prompt.split())}"), one, now, again)
    if summary := ", ".join(_summary(state, len(running) - MAX_ROWS)):
        return Group(grid, Text(f"  {summary}", style="dim", no_wrap=True, overflow="ellipsis"))
    return grid


def _summary(state: DisplayState, left_out: int) -> Iterator[str]:
    """Yield descriptions of the requests without a bar."""
    if left_out > 0:
        yield f"{left_out} more running"
    waiting = [one.progress for one in state.running.values() if not one.is_running]
    if waiting:
        yield f"{len(waiting)} waiting"
    positions = [(event.place, event) for event in waiting if event is not None and event.place is not None]
    reasons = {event.reason for event in waiting if event is not None and event.state == "waiting"}
    if reasons:
        yield max(reasons)
    elif positions:
        yield f"the first: {position_text(min(positions, key=lambda pair: pair[0])[1])}"


def _add_overall(grid: Table, state: DisplayState, now: float) -> None:
    ended = state.done + state.failed
    elapsed = now - state.started
    left = f"about {format_estimate(elapsed / ended * (state.total - ended))} left" if ended else ""
    grid.add_row(
        Text("all prompts", style="bold"),
        ProgressBar(state.total, ended),
        Text(f"{ended}/{state.total}", style="green"),
        Text(format_duration(elapsed), style="yellow"),
        Text.assemble((f"{state.failed} failed  " if state.failed else "", "red"), (left, "cyan")),
    )


def _add(grid: Table, label: Text, one: RequestState, now: float, note: str) -> None:
    step, steps = (one.progress.step, one.progress.steps) if one.progress is not None else (0, 0)
    bar = ProgressBar(steps, step) if steps else ProgressBar(None, pulse=True, animation_time=now)
    count = Text(f"{step}/{steps}" if steps else "", style="green")
    grid.add_row(
        label, bar, count, Text(format_duration(now - one.since), style="yellow"), Text(note, style="yellow")
    )


def state_text(progress: Progress | None) -> str:
    """Return the state of a request as text."""
    if progress is None or is_queued(progress):
        return "waiting"
    return f"running, attempt {progress.attempt}" if progress.attempt > 1 else "running"


def is_queued(progress: Progress) -> bool:
    """Return whether the request is queued at a broker, or waits for a broker."""
    return progress.state != "running"


def position_text(progress: Progress | None) -> str:
    """Return the queue position and estimated start of a waiting request, or why it waits; "" if unknown."""
    if progress is not None and progress.state == "waiting":
        return progress.reason
    if progress is None or not is_queued(progress) or progress.place is None:
        return ""
    seconds = progress.seconds_to_start
    estimate = "" if seconds is None else f", starts in about {format_estimate(seconds)}"
    return (f"{progress.place} ahead" if progress.place else "next") + estimate


class ProgressDisplay(ProgressView):
    """Progress bars on stderr while the context is entered; `print_line` prints above them."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.state = DisplayState(total, now())
        self._now = now
        # Rich renders in a thread of its own, so that the clocks run.
        self._lock = threading.Lock()
        self._live = self._new_live()

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, request: PreparedRequest) -> None:
        """Add a request."""
        with self._lock:
            self.state.running[request.index] = RequestState(request.prompt, self._now())

    def progressed(self, request: PreparedRequest, event: Progress) -> None:
        """Update the progress of a request."""
        with self._lock:
            running = self.state.running[request.index]
            was_running = running.is_running
            running.progress = event
            if running.is_running and not was_running:
                running.since = self._now()

    def ended(self, request: PreparedRequest, *, succeeded: bool) -> None:
        """Remove a request and count its outcome."""
        with self._lock:
            del self.state.running[request.index]
            self.state.done += succeeded
            self.state.failed += not succeeded

    def print_line(self, line: str, *, err: bool = False) -> None:
        """Print a line; on a terminal, above the bars."""
        if err or sys.stdout.isatty():
            self._live.console.print(Text(line), soft_wrap=True)
        else:
            echo(line)

    def print_image(self, image: "Image.Image") -> None:
        """Print an image to stdout, above the bars."""
        self._live.stop()
        super().print_image(image)
        # One that is started again would erase as many lines as its bars had before.
        self._live = self._new_live()
        self._live.start(refresh=True)

    def _new_live(self) -> Live:
        return Live(
            get_renderable=self._render,
            console=EscapingConsole(stderr=True),
            transient=True,
            refresh_per_second=8,
            # Redirecting would send output meant for a file to the terminal.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _render(self) -> RenderableType:
        with self._lock:
            return render(self.state, self._now())
