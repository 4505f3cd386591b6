"""What `imagegen generate` draws on a terminal while it waits."""

import io

import pytest
from rich.console import Console

from imagegen_cli.commands.generation import Watcher
from imagegen_cli.commands.progress_display import MAX_ROWS, Board, ProgressDisplay, Running, picture
from imagegen_cli.durations import clock, roughly
from imagegen_cli.prompts import Given, number
from imagegen_client.progress import Progress


def drawn(board, now, width=100):
    out = io.StringIO()
    Console(width=width, file=out).print(picture(board, now))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def board(total, *signs, **fields):
    running = {
        index: Running(f"prompt\n{index}", since=2.0, sign=None if sign is None else Progress(*sign))
        for index, sign in enumerate(signs)
    }
    return Board(total, started=0.0, running=running, **fields)


def words(line):
    """A line without its bar."""
    return " ".join(line.replace("━", "").replace("╸", "").replace("╺", "").split())


def test_one_request_says_what_it_does():
    assert [words(line) for line in drawn(board(1, None), 5.0)] == ["waiting 0:03"]
    assert [words(line) for line in drawn(board(1, (3, 20)), 5.0)] == ["drawing 3/20 0:03"]
    assert [words(line) for line in drawn(board(1, (3, 20, 2)), 65.0)] == ["drawing, attempt 2 3/20 1:03"]
    assert drawn(board(1), 5.0) == []


def test_several_have_a_bar_above_and_the_ones_that_run():
    lines = drawn(board(40, (3, 20), None, (0, 20), (1, 20, 3), None, done=8, failed=2), 10.0)
    assert [words(line) for line in lines] == [
        "all prompts 10/40 0:10 2 failed about 30 s left",
        "prompt 0 3/20 0:08",
        "prompt 2 0/20 0:08",
        "prompt 3 1/20 0:08 drawing, attempt 3",
        "2 waiting",
    ]


def queued(place, seconds=None):
    return Progress(0, 0, state="queued", place=place, seconds_to_start=seconds)


@pytest.mark.parametrize(
    ("sign", "line"),
    [
        (queued(12, 8.2), "waiting 0:03 12 before it, in about 8 s"),
        (queued(12), "waiting 0:03 12 before it"),
        (queued(0, 0.5), "waiting 0:03 next, in about 0.5 s"),
        (queued(None), "waiting 0:03"),
    ],
)
def test_one_that_waits_says_when_it_is_its_turn(sign, line):
    one = Running("x", since=2.0, sign=sign)
    assert [words(line) for line in drawn(Board(1, 0.0, running={0: one}), 5.0)] == [line]


def test_of_several_that_wait_the_first_says_when_it_is_its_turn():
    signs = [queued(7, 9.0), queued(3, 4.0), None, Progress(1, 20)]
    running = {at: Running(f"prompt {at}", since=2.0, sign=sign) for at, sign in enumerate(signs)}
    lines = drawn(Board(9, 0.0, running=running), 5.0)
    assert [words(line) for line in lines[1:]] == [
        "prompt 3 1/20 0:03",
        "3 waiting, the first: 3 before it, in about 4 s",
    ]


def test_of_many_only_some_are_shown():
    signs = [(1, 20)] * (MAX_ROWS + 5) + [None] * 100
    lines = drawn(board(500, *signs), 10.0)
    assert len(lines) == MAX_ROWS + 2
    assert words(lines[-1]) == "5 more being drawn, 100 waiting"
    assert words(lines[0]) == "all prompts 0/500 0:10"


@pytest.mark.parametrize("width", [30, 60, 80])
def test_it_fits(width):
    one = Running("x" * 1000, since=0.0, sign=Progress(1, 20))
    lines = drawn(Board(9, 0.0, done=3, failed=1, running={0: one}), 10.0, width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 2


def test_the_display_keeps_the_books():
    first, second = number([Given("a", {}, ""), Given("b", {}, "")], {}, 0)
    now = 0.0
    display = ProgressDisplay(2, lambda: now)
    display.begin(first)
    display.begin(second)
    now = 7.0
    display.sign(first, Progress(0, 20))
    assert display.board.running[0].since == 7.0, "the time that it is drawn"
    now = 9.0
    display.sign(first, Progress(1, 20))
    assert display.board.running[0].since == 7.0
    display.end(first, good=True)
    display.end(second, good=False)
    assert (display.board.done, display.board.failed, display.board.running) == (1, 1, {})


def test_what_goes_to_a_file_is_printed_there(capsys):
    # The streams of a test are no terminals.
    ProgressDisplay(1).say("a.png")
    Watcher().say("b.png")
    Watcher().say("wrong", err=True)
    assert capsys.readouterr() == ("a.png\nb.png\n", "wrong\n")


def test_durations():
    assert [clock(seconds) for seconds in (0, 3.9, 60, 3661, 90061)] == [
        "0:00",
        "0:03",
        "1:00",
        "1:01:01",
        "1d 1:01:01",
    ]
    assert [roughly(seconds) for seconds in (0.04, 0.5, 8.2, 89, 200, 7300)] == [
        "0.0 s", "0.5 s", "8 s", "89 s", "3 min", "2 h",
    ]  # fmt: skip
