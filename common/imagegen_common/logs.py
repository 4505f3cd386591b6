"""Log lines on stderr, as text for people (`time level message key=value …`) or as JSON for machines."""

import json
import logging
import math
import re
import sys
import threading
import time
from functools import lru_cache
from types import TracebackType
from typing import Any

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
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def log(logger: logging.Logger, level: int, text: str, **fields: Any) -> None:
    """Log a message with `key=value` pairs."""
    if logger.isEnabledFor(level):
        # `logger.log` would look up who calls it, for long, and find this line.
        record = logger.makeRecord(logger.name, level, __file__, 0, text, (), None, extra={"fields": fields})
        logger.handle(record)


def set_up(level: str, format: str, own: str, **constant: object) -> None:
    """Send lines to stderr: those of the logger `own` from `level` on, and warnings of all others.

    Python's warnings, and exceptions that nobody catches in any thread, become lines too.
    """
    handler = logging.StreamHandler(sys.stderr)
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
