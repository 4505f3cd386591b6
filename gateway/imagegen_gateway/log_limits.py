"""Limits on log lines that clients can cause."""

import logging
import time

LINES = 10
"""Maximum number of lines with the same text in an interval; further ones are counted."""
INTERVAL_SECONDS = 60.0
_MAX_TEXTS = 1000
"""Maximum number of different texts that are counted."""
_LOGGERS = ("uvicorn.error", "asyncio", "imagegen.gateway", "python_multipart.multipart")
"""Loggers whose lines clients can cause at any rate. Jobs limit the rate of the lines about jobs and webhooks."""


class RepetitionFilter(logging.Filter):
    """Passes at most `LINES` records with the same text in an interval; the next one states the number omitted.

    The text is that of the logging call, without its arguments and fields, and the kind of its exception.
    """

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        kind = record.exc_info[0] if record.exc_info else None
        text, now = f"{kind} {record.msg!s:.200}", time.monotonic()
        begun, number = self._texts.get(text, (now, 0))
        if now - begun >= INTERVAL_SECONDS:
            if number > LINES:
                fields = getattr(record, "fields", {})
                record.fields = {**fields, "omitted_before": number - LINES}
            begun, number = now, 0
            self._texts.pop(text, None)
        if text not in self._texts and len(self._texts) >= _MAX_TEXTS:
            del self._texts[next(iter(self._texts))]
        self._texts[text] = (begun, number + 1)
        return number < LINES


def limit_log_lines() -> None:
    """Limit the repetitions of each line from the server, asyncio, the gateway and its parser of forms."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(RepetitionFilter())
