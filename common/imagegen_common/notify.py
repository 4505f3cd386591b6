"""Notifications to systemd: readiness, status line and watchdog (`sd_notify(3)`)."""

import logging
import math
import os
import socket
from collections.abc import Callable, MutableMapping

from imagegen_common.logs import log

STATUS_SECONDS = 5.0
"""Time between two status lines."""

SEND_TIMEOUT_SECONDS = 5.0
"""Maximum time that READY and STOPPING wait for a busy systemd, as at boot."""

_log = logging.getLogger("imagegen.notify")


class SystemdNotifier:
    """Notifies systemd about one process; does nothing without NOTIFY_SOCKET. Times are monotonic seconds.

    The thread that calls `tick` feeds the watchdog eight times per watchdog interval, unless the work has made no
    step for a quarter of the interval. No step shorter than the interval counts as a hang, and systemd kills the
    process at the latest one and a quarter intervals after its last step.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Remove systemd's variables from the environment: child processes must not use them."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        watchdog = environment.pop("WATCHDOG_USEC", "")
        ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(watchdog) / 1e6 if watchdog.isdecimal() and ours else 0.0
        self._status_at = 0.0 if self._address else math.inf
        self._feed_at = 0.0 if self._address and self._watchdog else math.inf
        self._socket: socket.socket | None = None
        self._last_error = ""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @property
    def due_at(self) -> float:
        """Time at which `tick` has something to send; infinite if never."""
        return min(self._status_at, self._feed_at)

    def starting(self, status: str) -> None:
        """Send a status line during the start."""
        self._send(_status(status))

    def ready(self, status: str) -> None:
        """Report that the process accepts work: systemd starts the units after this one, and its watchdog."""
        self._send("READY=1", _status(status), timeout=SEND_TIMEOUT_SECONDS)

    def stopping(self, status: str) -> None:
        """Report that the process is about to exit."""
        self._send("STOPPING=1", _status(status), timeout=SEND_TIMEOUT_SECONDS)

    def tick(self, now: float, status: Callable[[], str], stuck_seconds: float = 0.0) -> None:
        """Send what is due. `stuck_seconds`: time since the last step of the work; 0 when idle."""
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
                log(_log, logging.WARNING, "no step, systemd's watchdog not fed", seconds=stuck_seconds)
        self._send(*lines)

    def close(self) -> None:
        """Close the socket and send nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._status_at = self._feed_at = math.inf

    def _send(self, *lines: str, timeout: float = 0.0) -> None:
        if self._socket is None or not lines:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        self._socket.settimeout(timeout)
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), address)
        except OSError as error:
            if str(error) != self._last_error:  # once: the next notification is due in seconds
                log(_log, logging.WARNING, "systemd not notified", address=self._address, error=error)
            self._last_error = str(error)
        else:
            self._last_error = ""


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
