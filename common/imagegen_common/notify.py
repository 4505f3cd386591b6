"""What a daemon tells systemd: that it is ready, that it lives, and in a line what it does (`sd_notify(3)`)."""

import logging
import math
import os
import socket
from collections.abc import Callable, MutableMapping

from imagegen_common.logs import log

STATUS_SECONDS = 5.0
"""Time between two status lines."""

PATIENCE_SECONDS = 5.0
"""How long word that must arrive waits for a systemd with much to do, as it has at boot."""

_log = logging.getLogger("imagegen.notify")


class Notifier:
    """Tells systemd of one process; where it does not listen, nothing is done. Times are monotonic seconds.

    The watchdog is told of life eight times in its time, by the thread that calls `tick`, and no more once the
    work has been stuck for a quarter of it. So no step shorter than its time is taken for a hang, and it strikes
    at the latest one and a quarter of its time after the last step.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Take what systemd has set out of the environment: child processes have nothing to tell."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        watchdog = environment.pop("WATCHDOG_USEC", "")
        ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(watchdog) / 1e6 if watchdog.isdecimal() and ours else 0.0
        self._status_at = 0.0 if self._address else math.inf
        self._feed_at = 0.0 if self._address and self._watchdog else math.inf
        self._socket: socket.socket | None = None
        self._trouble = ""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @property
    def due_at(self) -> float:
        """When `tick` has something to do; infinite if never."""
        return min(self._status_at, self._feed_at)

    def starting(self, status: str) -> None:
        """Say what is being prepared."""
        self._send(_status(status))

    def ready(self, status: str) -> None:
        """Say that work can come: units that wait for this one start, and the watchdog watches."""
        self._send("READY=1", _status(status), patience=PATIENCE_SECONDS)

    def stopping(self, status: str) -> None:
        """Say that the process is about to end of itself."""
        self._send("STOPPING=1", _status(status), patience=PATIENCE_SECONDS)

    def tick(self, now: float, status: Callable[[], str], stuck_seconds: float = 0.0) -> None:
        """Say what is due. `stuck_seconds`: how long the work has made no step; 0 where there is none."""
        if now < self.due_at:
            return
        lines = []
        if now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            lines.append(_status(status()))
        if now >= self._feed_at:
            self._feed_at = now + self._watchdog / 8
            if stuck_seconds < self._watchdog / 4:
                lines.append("WATCHDOG=1")
            elif stuck_seconds > self._watchdog / 2:
                log(_log, logging.WARNING, "no step: the watchdog is not told of life", seconds=stuck_seconds)
        self._send(*lines)

    def close(self) -> None:
        """Free the descriptor; nothing more is said."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._status_at = self._feed_at = math.inf

    def _send(self, *lines: str, patience: float = 0.0) -> None:
        if self._socket is None or not lines:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        self._socket.settimeout(patience)
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), address)
        except OSError as error:
            trouble = str(error)
            if trouble != self._trouble:  # said once: the next line is due in seconds
                log(_log, logging.WARNING, "systemd can't be told", address=self._address, error=trouble)
            self._trouble = trouble
        else:
            self._trouble = ""


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
