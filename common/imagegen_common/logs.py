"""Log lines on stderr, as text for people (`time level message key=value …`) or as JSON for machines.

A thread writes them: a logging call never waits for the reader of stderr.
"""

import json
import logging
import math
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

MAX_QUEUED_CHARACTERS = 8 * 1024 * 1024
"""Maximum size of the lines that wait for stderr; further ones are dropped and counted."""

REPORT_SECONDS = 5.0
"""Seconds between two log lines about dropped lines while the queue never empties."""

EXIT_SECONDS = 2.0
"""Maximum time that the end of the process waits for stderr to take the remaining lines."""

BURST_LINES = 20
"""Maximum number of warnings or errors with the same text in a second."""
_MAX_TEXTS = 1000

_PLAIN = re.compile(r"[^\s\"=]+")
_log = logging.getLogger("imagegen")
_encode = json.JSONEncoder(default=str).encode  # `json.dumps` would create an encoder for each line


Line = tuple[int, str, dict[str, Any]]
"""A level of `logging`, a message, and its fields."""


class LineFormatter(logging.Formatter):
    """Formats a record as one line, followed by the traceback if there is one.

    The `constant` fields end every line.
    """

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant
        self._end = "".join([f" {key}={_show(value)}" for key, value in constant.items()])

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; `extra={"fields": {…}}` of the logging call becomes `key=value` pairs."""
        fields: dict[str, object] = getattr(record, "fields", {})
        line = self.line(record.created, record.levelno, record.name, record.getMessage(), fields)
        if not record.exc_info:
            return line
        return "\n".join([line, *map(_escape, self.formatException(record.exc_info).split("\n"))])

    def line(self, created: float, level: int, logger: str, text: str, fields: dict[str, Any]) -> str:
        """Return the line of a message without a record; `created` in seconds since 1970."""
        message = _escape(" ".join(text.split()))  # an error's text may have several lines
        constant = self._constant
        pairs = [f"{key}={_show(value)}" for key, value in fields.items() if key not in constant]
        return " ".join([_instant(created), _level(level), message, *pairs]) + self._end


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line.

    Every object has `time` (UTC), `level`, `logger` and `message`; then come the fields of the call, the
    `constant` fields, and `traceback` if there is one.
    """

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a value that JSON can't express is written as text."""
        fields: dict[str, object] = getattr(record, "fields", {})
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return self._object(record.created, record.levelno, record.name, record.getMessage(), fields, trace)

    def line(self, created: float, level: int, logger: str, text: str, fields: dict[str, Any]) -> str:
        """Return the line of a message without a record; `created` in seconds since 1970."""
        return self._object(created, level, logger, text, fields, {})

    def _object(
        self, created: float, level: int, logger: str, text: str, fields: dict[str, Any], trace: dict[str, str]
    ) -> str:
        line: dict[str, object] = {
            "time": _instant(created),
            "level": _level(level),
            "logger": logger,
            "message": text,
        }
        for key, value in {**fields, **self._constant}.items():
            line[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        return _escape(_encode({**line, **trace}))  # JSON keeps one control character, delete


def _instant(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=16)
def _level(number: int) -> str:
    return logging.getLevelName(number).lower()


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value if type(value) is str else str(value)
    if text.isalnum() or (_PLAIN.fullmatch(text) and text.isprintable()):
        return text
    return _escape(json.dumps(text, ensure_ascii=False))


def _escape(text: str) -> str:
    r"""Return the text with control characters, which could change a terminal, as `\u001b`."""
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else _unicode_escape(each) for each in text])


def _unicode_escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if character.isascii() else json.dumps(character)[1:-1]


class BurstLimiter:
    """Limits the warnings and errors of one text in a second: peers that fail in a loop cause them."""

    def __init__(self) -> None:
        self._seconds: dict[str, tuple[int, int]] = {}
        """The present second of each text, and the number of its lines in it."""

    def limit(self, lines: Sequence[Line], now: float) -> list[Line]:
        """Return the lines to write; the first one of a later second states how many were left out."""
        kept: list[Line] = []
        for level, text, fields in lines:
            if level < logging.WARNING:
                kept.append((level, text, fields))
                continue
            second, count = self._seconds.get(text, (0, 0))
            if second != int(now):
                left_out = {"left_out": count - BURST_LINES} if count > BURST_LINES else {}
                kept.append((level, text, {**fields, **left_out}))
                second, count = int(now), 0
            elif count < BURST_LINES:
                kept.append((level, text, fields))
            if len(self._seconds) >= _MAX_TEXTS and text not in self._seconds:
                self._seconds.clear()
            self._seconds[text] = second, count + 1
        return kept


_limiter = BurstLimiter()


def log(logger: logging.Logger, level: int, text: str, **fields: Any) -> None:
    """Log a message with fields, unless there are too many of it."""
    for each in _limiter.limit([(level, text, fields)], time.monotonic()):
        _handle(logger, *each)


def log_all(logger: logging.Logger, lines: Sequence[Line]) -> None:
    """Log several messages in one write, without records if stderr is the logger's only output."""
    lines = _limiter.limit(lines, time.monotonic())
    handler = _only_handler(logger)
    if handler is None or not handler.enqueue_lines(logger, lines):
        for level, text, fields in lines:
            _handle(logger, level, text, fields)


def _only_handler(logger: logging.Logger) -> "StderrHandler | None":
    """Return the stderr handler if it is the only one that a record of the logger reaches."""
    current: logging.Logger | None = logger
    while current is not None and current is not logging.root:
        if current.handlers or current.filters or not current.propagate:
            return None
        current = current.parent
    match logging.root.handlers:
        case [StderrHandler() as handler] if not handler.filters:
            return handler
    return None


def _handle(logger: logging.Logger, level: int, text: str, fields: dict[str, Any]) -> None:
    if logger.isEnabledFor(level):
        # `logger.log` walks the stack to find its caller, which takes long and would find this line.
        record = logging.LogRecord(logger.name, level, __file__, 0, text, (), None)
        record.fields = fields
        logger.handle(record)


class StderrHandler(QueueHandler):
    """Formats records and queues them for the thread that writes to stderr.

    Drops lines while more than `max_characters` wait. A signal handler or a finalizer may log while its own thread
    is logging: hence a `SimpleQueue`, whose `put` is reentrant, and counters that one thread alone writes.
    """

    def __init__(
        self,
        stream: TextIO,
        formatter: LineFormatter | JsonFormatter,
        max_characters: int = MAX_QUEUED_CHARACTERS,
    ) -> None:
        texts: SimpleQueue[Any] = SimpleQueue()
        super().__init__(texts)
        self.setFormatter(formatter)
        self._texts = texts
        self._lines = formatter
        self._max_characters = max_characters
        self._queued_characters = 0
        self._dropped = 0
        self._writer = _Writer(texts, stream, self)
        self._writer.start()

    @property
    def dropped_lines(self) -> int:
        """Number of lines dropped since the start: the queue was full, or stderr failed."""
        return self._dropped + self._writer.failed_lines

    def prepare(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return f"{self.format(record)}\n"

    def enqueue(self, record: Any) -> None:
        """Queue a text; the caller holds the handler's lock. Blocks only once the handler is closed."""
        if not self._writer.running:
            self._writer.handle(record)
        elif self._queued_characters - self._writer.taken_characters >= self._max_characters:
            self._dropped += record.count("\n")
        else:
            self._queued_characters += len(record)
            self._texts.put(record)

    def enqueue_lines(self, logger: logging.Logger, lines: Sequence[Line]) -> bool:
        """Queue several lines as one text; return False if one of them can't be formatted."""
        line, now, name, enabled = self._lines.line, time.time(), logger.name, logger.isEnabledFor
        try:
            texts = [line(now, level, name, text, fields) for level, text, fields in lines if enabled(level)]
        except Exception:  # noqa: BLE001 - a value's own `__str__` may raise anything
            return False
        if texts:
            self.acquire()
            try:
                self.enqueue("\n".join([*texts, ""]))
            finally:
                self.release()
        return True

    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a record can't be formatted, without waiting for stderr."""
        error = repr(sys.exc_info()[1])
        self.enqueue(self.own_line("can't format a log line", {"of_logger": record.name, "error": error}))

    def own_line(self, text: str, fields: dict[str, Any]) -> str:
        """Return a line, with its end, that reports on the log itself."""
        return f"{self._lines.line(time.time(), logging.WARNING, _log.name, text, fields)}\n"

    def drain(self, timeout: float) -> bool:
        """Wait until all queued lines are written; return False if that takes longer than `timeout` seconds."""
        reached = threading.Event()
        self._texts.put(reached)
        return reached.wait(timeout)

    def close(self) -> None:
        """Write the queued lines within `EXIT_SECONDS`; later ones are written by their callers."""
        if self._writer.running and self.drain(EXIT_SECONDS):
            self._writer.stop()
        super().close()


class _Writer(QueueListener):
    """Writes queued texts to a stream, and reports dropped lines once it has caught up.

    It writes to the file descriptor, outside all locks: at exit, `logging` takes the lock of each handler and the
    interpreter that of `sys.stderr`, and both would wait for ever if a stalled write held them.
    """

    def __init__(self, texts: "SimpleQueue[Any]", stream: TextIO, handler: StderrHandler) -> None:
        super().__init__(texts)
        self._texts = texts
        self._stream = stream
        self._handler = handler
        self._reported = 0
        self._report_at = 0.0
        self.running = False
        self.taken_characters = 0
        self.failed_lines = 0
        try:
            self._descriptor: int | None = stream.fileno()
        except OSError:  # a stream in memory
            self._descriptor = None

    def start(self) -> None:
        """Start the thread, which leaves all signals to the main thread."""
        self.running = True
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def stop(self) -> None:
        """Write what is queued and end the thread."""
        super().stop()
        self.running = False

    def handle(self, record: Any) -> None:
        """Write a text, or set an event; report dropped lines with the last one, and every `REPORT_SECONDS`."""
        if isinstance(record, threading.Event):
            self._report()
            record.set()
            return
        self._write(record)
        self.taken_characters += len(record)
        if self._texts.empty() or time.monotonic() >= self._report_at:
            self._report()

    def _report(self) -> None:
        if (dropped := self._handler.dropped_lines) > self._reported:
            self._write(self._handler.own_line("log lines dropped", {"lines": dropped - self._reported}))
            self._reported = dropped
            self._report_at = time.monotonic() + REPORT_SECONDS

    def _write(self, text: str) -> None:
        try:
            if self._descriptor is None:
                self._stream.write(text)
                return
            rest = memoryview(text.encode(errors="backslashreplace"))
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process has made the terminal or pipe non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError):  # the reader is gone, the disk is full, the stream is closed
            self.failed_lines += text.count("\n")


def dropped_lines() -> int:
    """Return how many log lines were dropped because stderr did not take them."""
    handler = _stderr_handler()
    return 0 if handler is None else handler.dropped_lines


def flush(timeout: float = EXIT_SECONDS) -> bool:
    """Wait until all lines are written, as before `os._exit`; return False after `timeout` seconds."""
    handler = _stderr_handler()
    return handler is None or handler.drain(timeout)


def _stderr_handler() -> StderrHandler | None:
    return next((handler for handler in logging.root.handlers if isinstance(handler, StderrHandler)), None)


def set_up(level: str, format: str, own: str, **constant: object) -> None:
    """Send log lines to stderr: those of the logger `own` from `level` on, and warnings of all others.

    Python's warnings and uncaught exceptions of all threads become log lines too.
    """
    # No line shows these, so no record needs them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    formatter = JsonFormatter(constant) if format == "json" else LineFormatter(constant)
    if (previous := _stderr_handler()) is not None:
        previous.close()
    handler = StderrHandler(sys.stderr, formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(own).setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not isinstance(caught.exc_value, SystemExit):
        name = "unknown" if caught.thread is None else caught.thread.name
        info = (caught.exc_type, caught.exc_value, caught.exc_traceback)
        _log.critical("uncaught exception in a thread", exc_info=info, extra={"fields": {"thread": name}})


def _log_unraisable(caught: Any) -> None:
    info = (caught.exc_type, caught.exc_value, caught.exc_traceback)
    text = caught.err_msg or "an exception could not be raised"
    _log.error(text, exc_info=info, extra={"fields": {"object": repr(caught.object)}})
