"""Reasons for failed connections, which libzmq reports only through a socket's monitor.

A rejection is final only if the broker states it. A broken connection or handshake is an outage: a proxy in front
of a broker that is down accepts connections and closes them, which looks like a broker with other keys.
"""

from dataclasses import dataclass
from typing import Any, Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)
_DENIED = 400
"""ZAP status for a key that is not on the broker's list; 300 and 500 are failures of the broker."""
_MIN_FAILURES = 3
"""Consecutive broken handshakes before a suspicion is reported."""

KEY_REFUSED = "the broker does not accept this key"
OTHER_SECURITY = (
    "the handshake fails: either only one side uses keys, or no broker for this role listens on the port"
)
KEYS_UNCHECKED = "the broker can't check keys at the moment"
BROKEN_WITH_KEYS = (
    "the connection breaks in the handshake: the broker may be down behind a proxy, use no keys, or have"
    " another key than the one given for it"
)
BROKEN_WITHOUT_KEYS = (
    "the connection breaks in the handshake: the broker may be down behind a proxy, or require keys"
)


@dataclass(frozen=True, slots=True)
class HandshakeReport:
    """Changes of a socket's connection since the last report."""

    refusal: str = ""
    """Reason why the broker rejects this peer; "" if it does not."""
    suspicion: str = ""
    """Likely, possibly temporary reason why no handshake succeeds; "" if there is none."""
    stopped: bool = False
    """Whether libzmq does not connect again by itself, so that a new socket is needed."""
    lost: bool = False
    """Whether an established connection has broken. libzmq reconnects under the same routing id, which a ROUTER
    ignores while it still has the old connection: a new socket with a new routing id is faster."""


NO_CHANGE = HandshakeReport()

_Stage = Literal["down", "handshake", "up"]
_STAGES: dict[zmq.Event, _Stage] = {
    zmq.EVENT_CONNECTED: "handshake",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "up",
}
"""Stage after an event; every other event leads to "down"."""


class HandshakeMonitor:
    """The handshakes of one connecting socket. Poll `monitor` for reading, then call `read`."""

    def __init__(self, socket: "zmq.Socket[Any]") -> None:
        """Attach a monitor to a socket; call it before the socket connects."""
        self._socket = socket
        self.monitor: zmq.Socket[Any] = socket.get_monitor_socket(_WATCHED)
        self._stage: _Stage = "down"
        self._failures = 0

    def read(self) -> HandshakeReport:
        """Read the events that have arrived, and return a report of the last handshake."""
        report = NO_CHANGE
        while self.monitor.poll(0):
            message = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            report = self._after(zmq.Event(message["event"]), message["value"], report)
        if self._failures >= _MIN_FAILURES:
            self._failures = 0
            keyed = self._socket.get(zmq.MECHANISM) == zmq.CURVE
            suspicion = BROKEN_WITH_KEYS if keyed else BROKEN_WITHOUT_KEYS
            report = HandshakeReport(suspicion=suspicion, lost=report.lost)
        return report

    def _after(self, event: zmq.Event, status: int, before: HandshakeReport) -> HandshakeReport:
        stage, self._stage = self._stage, _STAGES.get(event, "down")
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failures = 0
            return HandshakeReport(lost=before.lost)
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            if status == _DENIED:
                return HandshakeReport(refusal=KEY_REFUSED, stopped=True)
            return HandshakeReport(suspicion=KEYS_UNCHECKED, stopped=True)
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return HandshakeReport(suspicion=OTHER_SECURITY, stopped=True)
        if stage == "handshake":
            self._failures += 1
        elif stage == "up":
            return HandshakeReport(lost=True)
        return before

    def close(self) -> None:
        """Detach from the socket; call it before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(0)
