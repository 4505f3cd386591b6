"""One line a record, in pairs that a machine can read."""

import logging

import pytest

from imagegen_worker.logs import LineFormatter, log, set_up


@pytest.fixture
def line():
    formatter = LineFormatter({"worker": "w 1", "gpu": 0})

    def line(text, fields=None, exc_info=None, level=logging.INFO):
        record = logging.LogRecord("imagegen_worker", level, "", 0, text, (), exc_info)
        record.created = 0.25
        if fields is not None:
            record.fields = fields
        return formatter.format(record)

    return line


def test_a_line(line):
    assert line("registered", {"session": 3, "interval": 0.123456, "epoch": None}) == (
        '1970-01-01T00:00:00.250Z info registered session=3 interval=0.123 epoch=None worker="w 1" gpu=0'
    )


def test_values_that_would_break_the_pairs_are_quoted(line):
    shown = line("x", {"error": 'a "b"=c\nd', "empty": "", "name": "grün"})
    assert r'error="a \"b\"=c\nd" empty="" name=grün' in shown
    assert "\n" not in shown


def test_a_message_of_several_lines_becomes_one(line):
    assert " error no such file see the manual worker=" in line(
        "no such file\n  see the manual", level=logging.ERROR
    )


def test_a_traceback_follows_the_line(line):
    try:
        raise ValueError("boom")
    except ValueError as error:
        shown = line("it raised", exc_info=(ValueError, error, error.__traceback__))
    first, *rest = shown.splitlines()
    assert first.endswith("gpu=0")
    assert rest[-1] == "ValueError: boom"


@pytest.mark.usefixtures("clean_logging")
def test_own_lines_by_level_and_warnings_of_all_others(capsys):
    set_up("info", worker="w")
    log(logging.getLogger("imagegen_worker.daemon"), logging.INFO, "hello", beat=1)
    log(logging.getLogger("imagegen_worker.daemon"), logging.DEBUG, "not this")
    logging.getLogger("other").info("nor this")
    logging.getLogger("other").warning("but this")
    lines = capsys.readouterr().err.splitlines()
    assert [text.split(" ", 1)[1] for text in lines] == ["info hello beat=1 worker=w", "warning but this worker=w"]
