"""Progress bars of `imagegen generate`."""

import io

import pytest
from rich.console import Console

from imagegen_cli.commands.generation import ProgressView
from imagegen_cli.commands.progress_display import MAX_ROWS, DisplayState, ProgressDisplay, RequestState, render
from imagegen_cli.durations import format_duration, format_estimate
from imagegen_cli.prompts import PromptEntry, prepare
from imagegen_client.progress import Progress


def rendered(state, now, width=100):
    out = io.StringIO()
    Console(width=width, file=out).print(render(state, now))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def display_state(total, *events, **fields):
    running = {
        index: RequestState(f"prompt\n{index}", since=2.0, progress=None if event is None else Progress(*event))
        for index, event in enumerate(events)
    }
    return DisplayState(total, started=0.0, running=running, **fields)


def text_of(line):
    """Return a line without its bar."""
    return " ".join(line.replace("━", "").replace("╸", "").replace("╺", "").split())


def test_one_request_has_one_bar_with_its_state():
    assert [text_of(line) for line in rendered(display_state(1, None), 5.0)] == ["waiting 0:03"]
    assert [text_of(line) for line in rendered(display_state(1, (3, 20)), 5.0)] == ["running 3/20 0:03"]
    assert [text_of(line) for line in rendered(display_state(1, (3, 20, 2)), 65.0)] == [
        "running, attempt 2 3/20 1:03"
    ]
    assert rendered(display_state(1), 5.0) == []


def test_several_requests_have_an_overall_bar_and_one_per_running_request():
    lines = rendered(display_state(40, (3, 20), None, (0, 20), (1, 20, 3), None, done=8, failed=2), 10.0)
    assert [text_of(line) for line in lines] == [
        "all prompts 10/40 0:10 2 failed about 30 s left",
        "prompt 0 3/20 0:08",
        "prompt 2 0/20 0:08",
        "prompt 3 1/20 0:08 running, attempt 3",
        "2 waiting",
    ]


def queued(place, seconds=None):
    return Progress(0, 0, state="queued", place=place, seconds_to_start=seconds)


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (queued(12, 8.2), "waiting 0:03 12 ahead, starts in about 8 s"),
        (queued(12), "waiting 0:03 12 ahead"),
        (queued(0, 0.5), "waiting 0:03 next, starts in about 0.5 s"),
        (queued(None), "waiting 0:03"),
        (Progress(0, 0, state="waiting", reason="no broker answers at X"), "waiting 0:03 no broker answers at X"),
    ],
)
def test_a_waiting_request_shows_its_queue_position(progress, line):
    request = RequestState("x", since=2.0, progress=progress)
    assert [text_of(line) for line in rendered(DisplayState(1, 0.0, running={0: request}), 5.0)] == [line]


def test_several_waiting_requests_show_the_first_queue_position():
    events = [queued(7, 9.0), queued(3, 4.0), None, Progress(1, 20)]
    running = {
        at: RequestState(f"prompt {at}", since=2.0, progress=progress) for at, progress in enumerate(events)
    }
    lines = rendered(DisplayState(9, 0.0, running=running), 5.0)
    assert [text_of(line) for line in lines[1:]] == [
        "prompt 3 1/20 0:03",
        "3 waiting, the first: 3 ahead, starts in about 4 s",
    ]


def test_several_requests_without_a_broker_show_the_reason():
    waiting = Progress(0, 0, state="waiting", reason="no broker answers at X")
    running = {at: RequestState("x", since=2.0, progress=event) for at, event in enumerate([waiting, queued(3)])}
    lines = rendered(DisplayState(9, 0.0, running=running), 5.0)
    assert text_of(lines[-1]) == "2 waiting, no broker answers at X"


def test_the_number_of_bars_is_limited():
    events = [(1, 20)] * (MAX_ROWS + 5) + [None] * 100
    lines = rendered(display_state(500, *events), 10.0)
    assert len(lines) == MAX_ROWS + 2
    assert text_of(lines[-1]) == "5 more running, 100 waiting"
    assert text_of(lines[0]) == "all prompts 0/500 0:10"


@pytest.mark.parametrize("width", [30, 60, 80])
def test_lines_fit_the_width(width):
    request = RequestState("x" * 1000, since=0.0, progress=Progress(1, 20))
    lines = rendered(DisplayState(9, 0.0, done=3, failed=1, running={0: request}), 10.0, width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 2


def test_the_display_counts_requests():
    first, second = prepare([PromptEntry("a", {}, ""), PromptEntry("b", {}, "")], {}, 0)
    now = 0.0
    display = ProgressDisplay(2, lambda: now)
    display.started(first)
    display.started(second)
    now = 7.0
    display.progressed(first, Progress(0, 20))
    assert display.state.running[0].since == 7.0, "the time since a worker started it"
    now = 9.0
    display.progressed(first, Progress(1, 20))
    assert display.state.running[0].since == 7.0
    display.ended(first, succeeded=True)
    display.ended(second, succeeded=False)
    assert (display.state.done, display.state.failed, display.state.running) == (1, 1, {})


def test_lines_are_printed_to_stdout_or_stderr(capsys):
    # The streams of a test are not terminals.
    ProgressDisplay(1).print_line("a.png")
    ProgressView().print_line("b.png")
    ProgressView().print_line("wrong", err=True)
    assert capsys.readouterr() == ("a.png\nb.png\n", "wrong\n")


def test_durations():
    assert [format_duration(seconds) for seconds in (0, 3.9, 60, 3661, 90061)] == [
        "0:00",
        "0:03",
        "1:00",
        "1:01:01",
        "1d 1:01:01",
    ]
    assert [format_estimate(seconds) for seconds in (0.04, 0.5, 8.2, 89, 200, 7300)] == [
        "0.0 s", "0.5 s", "8 s", "89 s", "3 min", "2 h",
    ]  # fmt: skip
