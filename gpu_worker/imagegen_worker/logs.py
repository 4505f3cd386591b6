"""Log lines on stderr: `time level message key=value …`."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
_PLAIN = re.compile(r"[^\s\"=]+")


class LineFormatter(logging.Formatter):
    """Formats one record as one line (a traceback, if there is one, follows); `constant` ends every line."""

    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; `extra={"fields": {…}}` of the logging call becomes `key=value` pairs."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        given: dict[str, object] = getattr(record, "fields", {})
        pairs = [f"{key}={_show(value)}" for key, value in {**given, **self._constant}.items()]
        message = " ".join(record.getMessage().split())  # an error's text may have several lines
        line = " ".join([at.replace("+00:00", "Z"), record.levelname.lower(), message, *pairs])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(level: str, **constant: object) -> None:
    """Send this package's lines of `level` and above to stderr, and warnings of all others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(constant))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("imagegen_worker").setLevel(level.upper())


def log(logger: logging.Logger, level: int, text: str, **fields: Any) -> None:
    """Log a message with `key=value` pairs."""
    logger.log(level, text, extra={"fields": fields})


def _show(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
