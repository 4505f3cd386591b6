"""Signals of daemons."""

import logging
import signal
from types import FrameType
from typing import Any

from imagegen_common.logs import log


def ignore_hangup(logger: logging.Logger) -> Any:
    """Log SIGHUP instead of ending the process; return the previous handler, for `signal.signal`.

    A closed terminal, or a habit of reloading daemons, must not end running requests.
    """

    def on_hangup(number: int, frame: FrameType | None) -> None:
        log(logger, logging.WARNING, "SIGHUP ignored: settings are read at the start only")

    return signal.signal(signal.SIGHUP, on_hangup)
