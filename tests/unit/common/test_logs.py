"""One line a record, in pairs that people can read, or in JSON."""

import json
import logging
import os
import re
import subprocess
import sys
import threading

import pytest

from imagegen_common.logs import JsonFormatter, LineFormatter, StderrHandler, flush, log, log_all, set_up

CONSTANT = {"worker": "w 1", "gpu": 0}


def shown(formatter, text, fields=None, error=None, level=logging.INFO):
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("imagegen_worker", level, "", 0, text, (), exc_info)
    record.created = 0.25
    if fields is not None:
        record.fields = fields
    return formatter(CONSTANT).format(record)


def written(capsys):
    """What the process has logged since the last call."""
    assert flush()
    return capsys.readouterr().err


def raised(text="boom\nand more"):
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_a_line():
    assert shown(LineFormatter, "registered", {"session": 3, "interval": 0.123456, "epoch": None}) == (
        '1970-01-01T00:00:00.250Z info registered session=3 interval=0.123 epoch=None worker="w 1" gpu=0'
    )


def test_values_that_would_break_the_pairs_are_quoted():
    line = shown(LineFormatter, "x", {"error": 'a "b"=c\nd', "empty": "", "name": "grün"})
    assert r'error="a \"b\"=c\nd" empty="" name=grün' in line
    assert "\n" not in line


def test_a_message_of_several_lines_becomes_one():
    line = shown(LineFormatter, "no such file\n  see the manual", level=logging.ERROR)
    assert " error no such file see the manual worker=" in line


@pytest.mark.parametrize("character", ["\x1b", "\x7f", "\x9b", "\u202e", "\u2028", "\udc80", "\U000e0041"])
def test_control_characters_of_other_peers_do_not_reach_the_terminal(character):
    fields = {"plain": f"a{character}b", "quoted": f"a {character}"}
    line = shown(LineFormatter, f"it {character} happened", fields)
    assert line.isprintable()
    plain, quoted = re.search(r'plain=("[^"]+") quoted=("[^"]+")', line).groups()
    assert (json.loads(plain), json.loads(quoted)) == tuple(fields.values())
    lines = shown(LineFormatter, "it raised", error=raised(character)).split("\n")
    assert all(each.isprintable() for each in lines)


def test_a_traceback_follows_the_line():
    first, *rest = shown(LineFormatter, "it raised", error=raised()).splitlines()
    assert first.endswith("gpu=0")
    assert rest[-2:] == ["ValueError: boom", "and more"]


HOSTILE = "w\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\x7f\u2028"


@pytest.mark.parametrize("formatter", [LineFormatter, JsonFormatter])
def test_control_characters_of_peers_are_escaped_everywhere_in_a_line(formatter):
    constant = formatter({"worker": HOSTILE})
    record = logging.LogRecord("x", logging.ERROR, "", 0, HOSTILE, (), (ValueError, ValueError(HOSTILE), None))
    record.fields = {"plain": HOSTILE, "quoted": f"a b {HOSTILE}", "list": [HOSTILE], "error": ValueError(HOSTILE)}
    for line in (constant.format(record), constant.line(0.0, logging.INFO, "x", HOSTILE, record.fields)):
        text = line.replace("\n", "")
        assert text.isprintable(), ascii(text)
        assert line.count("]0;title") - line.count(r"\u001b]0;title\u0007") <= 1, "the list shows its items' repr"


def test_an_object():
    assert json.loads(shown(JsonFormatter, "registered", {"session": 3, "interval": 0.123456, "epoch": None})) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "imagegen_worker",
        "message": "registered",
        "session": 3,
        "interval": 0.123456,
        "epoch": None,
        "worker": "w 1",
        "gpu": 0,
    }


def test_an_object_stands_on_one_line_whatever_is_in_it():
    fields = {"error": raised(), "path": "\udce4\n", "age": float("inf"), "ids": [b"a"]}
    line = shown(JsonFormatter, "two\nlines", fields, raised())
    assert "\n" not in line
    read = json.loads(line, parse_constant=pytest.fail)
    assert (read["message"], read["error"], read["age"]) == ("two\nlines", "boom\nand more", "inf")
    assert (read["path"], read["ids"]) == ("\udce4\n", ["b'a'"])
    assert read["traceback"].splitlines()[-2:] == ["ValueError: boom", "and more"]


@pytest.mark.usefixtures("clean_logging")
def test_own_lines_by_level_and_warnings_of_all_others(capsys):
    set_up("info", "text", own="imagegen_worker", worker="w")
    log(logging.getLogger("imagegen_worker.daemon"), logging.INFO, "hello", beat=1)
    log(logging.getLogger("imagegen_worker.daemon"), logging.DEBUG, "not this")
    logging.getLogger("other").info("nor this")
    logging.getLogger("other").warning("but this")
    lines = written(capsys).splitlines()
    assert [text.split(" ", 1)[1] for text in lines] == ["info hello beat=1 worker=w", "warning but this worker=w"]


@pytest.mark.usefixtures("clean_logging")
def test_what_a_thread_raises_becomes_an_object(capsys):
    set_up("info", "json", own="imagegen_worker", worker="w")

    def fail():
        raise ValueError("boom")

    thread = threading.Thread(target=fail, name="device")
    thread.start()
    thread.join()
    [line] = [json.loads(line) for line in written(capsys).splitlines()]
    assert (line["level"], line["thread"], line["worker"]) == ("critical", "device", "w")
    assert line["traceback"].splitlines()[-1] == "ValueError: boom"


def test_warnings_and_the_last_exception_of_a_process_are_objects():
    script = (
        "import warnings\n"
        "from imagegen_common.logs import set_up\n"
        "class Bad:\n"
        "    def __del__(self): raise ValueError('late')\n"
        "set_up('info', 'json', own='imagegen')\n"
        "warnings.warn('old ways')\n"
        "bad = Bad(); del bad\n"
        "raise ValueError('boom')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    warning, late, last = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: old ways" in warning["message"]
    assert late["traceback"].splitlines()[-1] == "ValueError: late"
    assert (last["level"], last["message"]) == ("critical", "uncaught exception")
    assert last["traceback"].splitlines()[-1] == "ValueError: boom"


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.usefixtures("clean_logging")
def test_several_lines_at_once_are_those_that_single_ones_would_be(capsys, format):
    set_up("info", format, own="imagegen", worker="w", gpu=0)
    logger = logging.getLogger("imagegen.broker")
    lines = [
        (logging.INFO, "request answered", {"request_id": "0af", "total_seconds": 0.51234, "worker": "mine"}),
        (logging.DEBUG, "not this", {}),
        (logging.WARNING, "worker\nlost", {"why": 'a "b"', "left": None, "age": float("inf")}),
    ]
    log_all(logger, lines)
    together = written(capsys).splitlines()
    for level, text, fields in lines:
        log(logger, level, text, **fields)
    assert [untimed(line) for line in together] == [untimed(line) for line in written(capsys).splitlines()]
    assert len(together) == 2


def untimed(line):
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", line)


@pytest.mark.usefixtures("clean_logging")
def test_several_lines_reach_whoever_else_listens(caplog, capsys):
    set_up("info", "text", own="imagegen")
    logger = logging.getLogger("imagegen.broker")
    logger.addHandler(caplog.handler)
    try:
        log_all(logger, [(logging.INFO, "heard", {"beat": 1})])
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.fields for record in caplog.records] == [{"beat": 1}]
    assert "info heard beat=1" in written(capsys)


@pytest.mark.usefixtures("clean_logging")
def test_a_value_that_can_not_be_shown_ends_nothing(capsys):
    class Bad:
        def __str__(self):
            raise ValueError("no words")

    set_up("info", "text", own="imagegen")
    lines = [(logging.INFO, "before", {}), (logging.INFO, "bad", {"it": Bad()}), (logging.INFO, "after", {})]
    log_all(logging.getLogger("imagegen.broker"), lines)
    said = written(capsys)
    assert "info before" in said
    assert "info after" in said
    assert "no words" in said


@pytest.fixture
def pipe():
    """A pipe whose reader does not read, as a handler's stream and the reading end."""
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        yield reader, writer


def handler_of(stream, max_characters):
    handler = StderrHandler(stream, LineFormatter({}), max_characters)
    logger = logging.Logger("imagegen.broker")
    logger.addHandler(handler)
    return handler, logger


def test_a_pipe_that_is_not_read_blocks_no_logging_call_and_the_dropped_lines_are_counted(pipe):
    reader, writer = pipe
    handler, logger = handler_of(writer, 100_000)
    sent = 3000
    for number in range(sent):  # far more than the pipe and the queue hold
        log(logger, logging.INFO, "x" * 100, number=number)
    dropped = handler.dropped_lines
    assert 0 < dropped < sent
    assert not handler.drain(0.05)

    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(reader))
    reading.start()
    assert handler.drain(60)
    log(logger, logging.INFO, "the last")
    handler.close()
    writer.close()
    reading.join(60)
    kept = [line for line in lines if "number=" in line]
    assert len(kept) == sent - dropped
    reports = re.findall(r" warning log lines dropped lines=(\d+)$", "".join(lines), re.MULTILINE)
    assert sum(map(int, reports)) == dropped
    assert " info the last\n" in lines[-1]
    assert handler.dropped_lines == dropped


def test_a_reader_that_is_gone_ends_nothing_and_its_lines_count_as_dropped():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as writer:
        handler, logger = handler_of(writer, 100_000)
        log(logger, logging.INFO, "lost")
        assert handler.drain(60)
        assert handler.dropped_lines >= 1
        handler.close()


def test_a_line_logged_while_the_same_thread_logs_is_written(pipe):
    """A signal handler or a finalizer logs in the middle of another logging call."""
    reader, writer = pipe
    handler, logger = handler_of(writer, 100_000)

    class Inner:
        def __str__(self):
            log(logger, logging.INFO, "inner")
            return "outer"

    log(logger, logging.INFO, "line", value=Inner())
    handler.close()
    writer.close()
    assert [line.split(" ", 2)[2] for line in reader] == ["inner\n", "line value=outer\n"]


def test_a_closed_handler_writes_at_once(pipe):
    reader, writer = pipe
    handler, logger = handler_of(writer, 100_000)
    handler.close()
    log(logger, logging.INFO, "late")
    writer.close()
    assert " info late\n" in reader.read()


def test_a_process_ends_although_its_stderr_is_not_read():
    script = (
        "import logging\n"
        "from imagegen_common.logs import log, set_up\n"
        "set_up('info', 'text', own='imagegen')\n"
        "for number in range(3000):\n"
        "    log(logging.getLogger('imagegen'), logging.INFO, 'x' * 100, number=number)\n"
        "print('logged', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.wait(60) == 0
            assert process.stdout.read() == "logged\n"
        finally:
            process.kill()
