"""Log lines on stderr, as text for people (`time level message key=value …`) or as JSON for machines."""

import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_PLAIN = re.compile(r"[^\s\"=]+")
_log = logging.getLogger("imagegen")
_encode = json.JSONEncoder(default=str).encode  # `json.dumps` would make an encoder for each line


class LineFormatter(logging.Formatter):
    """Formats one record as one line (a traceback, if there is one, follows); `constant` ends every line."""

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; `extra={"fields": {…}}` of the logging call becomes `key=value` pairs."""
        given: dict[str, object] = getattr(record, "fields", {})
        pairs = [f"{key}={_show(value)}" for key, value in {**given, **self._constant}.items()]
        message = " ".join(record.getMessage().split())  # an error's text may have several lines
        line = " ".join([_instant(record.created), record.levelname.lower(), message, *pairs])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
        line: dict[str, object] = {
            "time": _instant(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in {**given, **self._constant}.items():
            line[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


def _instant(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return text if text.isalnum() or _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def log(logger: logging.Logger, level: int, text: str, **fields: Any) -> None:
    """Log a message with `key=value` pairs."""
    _handle(logger, level, text, fields)


def log_all(logger: logging.Logger, lines: Iterable[tuple[int, str, dict[str, Any]]]) -> None:
    """Log several messages, each with its level and its pairs, in one write."""
    handlers = [handler for handler in logging.root.handlers if isinstance(handler, _LineHandler)]
    for handler in handlers:
        handler.hold()
    try:
        for level, text, fields in lines:
            _handle(logger, level, text, fields)
    finally:
        for handler in handlers:
            handler.let_go()


def _handle(logger: logging.Logger, level: int, text: str, fields: dict[str, Any]) -> None:
    if logger.isEnabledFor(level):
        # `logger.log` would look up who calls it, for long, and find this line.
        record = logging.LogRecord(logger.name, level, __file__, 0, text, (), None)
        record.fields = fields
        logger.handle(record)


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once, or, while they are held, all together."""

    _held: list[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
            return
        try:
            self._held.append(self.format(record))
        except Exception:  # noqa: BLE001 - as in the standard library: a bad line must not end the program
            self.handleError(record)

    def hold(self) -> None:
        with self._locked():
            self._held = []

    def let_go(self) -> None:
        with self._locked():
            held, self._held = self._held, None
            if held:
                self.stream.write(self.terminator.join(held) + self.terminator)
                self.flush()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def set_up(level: str, format: str, own: str, **constant: object) -> None:
    """Send lines to stderr: those of the logger `own` from `level` on, and warnings of all others.

    Python's warnings, and exceptions that nobody catches in any thread, become lines too.
    """
    # What no line shows need not be found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(constant) if format == "json" else LineFormatter(constant))
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
