"""Log lines on stderr, as text for people (`time level message key=value …`) or as JSON for machines."""

import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_PLAIN = re.compile(r"[^\s\"=]+")
_log = logging.getLogger("imagegen")
_encode = json.JSONEncoder(default=str).encode  # `json.dumps` would make an encoder for each line


Line = tuple[int, str, dict[str, Any]]
"""A level of `logging`, a message, and its pairs."""


class LineFormatter(logging.Formatter):
    """Formats one record as one line (a traceback, if there is one, follows); `constant` ends every line."""

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant
        self._end = "".join([f" {key}={_show(value)}" for key, value in constant.items()])

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; `extra={"fields": {…}}` of the logging call becomes `key=value` pairs."""
        given: dict[str, object] = getattr(record, "fields", {})
        line = self.line(record.created, record.levelno, record.name, record.getMessage(), given)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def line(self, created: float, level: int, logger: str, text: str, fields: dict[str, Any]) -> str:
        """Return the line of what is no record, and has no traceback; `created` in seconds since 1970."""
        message = " ".join(text.split())  # an error's text may have several lines
        constant = self._constant
        pairs = [f"{key}={_show(value)}" for key, value in fields.items() if key not in constant]
        return " ".join([_instant(created), _level(level), message, *pairs]) + self._end


class JsonFormatter(logging.Formatter):
    """Formats one record as one JSON object on one line.

    Always there: `time` (UTC), `level`, `logger`, `message`; then the fields of the call and the `constant` ones,
    and `traceback` where there is one.
    """

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what JSON has no word for is written as text."""
        given: dict[str, object] = getattr(record, "fields", {})
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return self._object(record.created, record.levelno, record.name, record.getMessage(), given, trace)

    def line(self, created: float, level: int, logger: str, text: str, fields: dict[str, Any]) -> str:
        """Return the line of what is no record, and has no traceback; `created` in seconds since 1970."""
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
        return _encode({**line, **trace})


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
    return text if text.isalnum() or _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def log(logger: logging.Logger, level: int, text: str, **fields: Any) -> None:
    """Log a message with `key=value` pairs."""
    _handle(logger, level, text, fields)


def log_all(logger: logging.Logger, lines: Sequence[Line]) -> None:
    """Log several messages at once: in one write, without a record for each, where nobody else listens."""
    handler = _only_listener(logger)
    if handler is None or not handler.write(logger, lines):
        for level, text, fields in lines:
            _handle(logger, level, text, fields)


def _only_listener(logger: logging.Logger) -> "_LineHandler | None":
    """Return the one handler that a record of the logger would reach, if it does so unchanged and is ours."""
    current: logging.Logger | None = logger
    while current is not None and current is not logging.root:
        if current.handlers or current.filters or not current.propagate:
            return None
        current = current.parent
    match logging.root.handlers:
        case [_LineHandler() as handler] if not handler.filters:
            return handler
    return None


def _handle(logger: logging.Logger, level: int, text: str, fields: dict[str, Any]) -> None:
    if logger.isEnabledFor(level):
        # `logger.log` would look up who calls it, for long, and find this line.
        record = logging.LogRecord(logger.name, level, __file__, 0, text, (), None)
        record.fields = fields
        logger.handle(record)


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream."""

    def __init__(self, stream: TextIO, formatter: LineFormatter | JsonFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._lines = formatter

    def write(self, logger: logging.Logger, lines: Sequence[Line]) -> bool:
        """Write several lines; False: it did not work, and is worth a record for each, which says why."""
        line, now, name, enabled = self._lines.line, time.time(), logger.name, logger.isEnabledFor
        try:
            told = [line(now, level, name, text, fields) for level, text, fields in lines if enabled(level)]
            self.acquire()
            try:
                self.stream.write(self.terminator.join([*told, ""]))
                self.flush()
            finally:
                self.release()
        except Exception:  # noqa: BLE001 - as in the standard library: a bad line must not end the program
            return False
        return True


def set_up(level: str, format: str, own: str, **constant: object) -> None:
    """Send lines to stderr: those of the logger `own` from `level` on, and warnings of all others.

    Python's warnings, and exceptions that nobody catches in any thread, become lines too.
    """
    # What no line shows need not be found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    formatter = JsonFormatter(constant) if format == "json" else LineFormatter(constant)
    handler = _LineHandler(sys.stderr, formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(own).setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not isinstance(caught.exc_value, SystemExit):
        name = "unknown" if caught.thread is None else caught.thread.name
        info = (caught.exc_type, caught.exc_value, caught.exc_traceback)
        _log.critical("uncaught exception in a thread", exc_info=info, extra={"fields": {"thread": name}})


def _unraisable(caught: Any) -> None:
    info = (caught.exc_type, caught.exc_value, caught.exc_traceback)
    text = caught.err_msg or "an exception could not be raised"
    _log.error(text, exc_info=info, extra={"fields": {"object": repr(caught.object)}})
