"""Why a connection fails: libzmq reports it to a socket's monitor only.

A refusal is final only if the broker states it. A broken connection or handshake is an outage: a proxy in front
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
"""The ZAP status with which a broker states that a key is not on its list; 300 and 500 are failures of its own."""
_PATIENCE = 3
"""Handshakes that must break in a row before a suspicion is reported."""

KEY_REFUSED = "the broker does not accept this key"
OTHER_SECURITY = (
    "the handshake fails: either only one side uses keys, or no broker for this role listens on the port"
)
KEYS_UNCHECKED = "the broker can't check keys at the moment"
BROKEN_WITH_KEYS = (
    "the connection breaks in the handshake: the broker may be down behind a proxy, use no keys, or have another"
    " key than the one given for it"
)
BROKEN_WITHOUT_KEYS = (
    "the connection breaks in the handshake: the broker may be down behind a proxy, or demand keys"
)


@dataclass(frozen=True, slots=True)
class HandshakeNews:
    """What has happened to a socket's connection since the last look."""

    refusal: str = ""
    """Why the broker refuses this peer, as it stated; "" if it has not."""
    suspicion: str = ""
    """The likely reason why no handshake succeeds; it may mend itself."""
    stopped: bool = False
    """libzmq does not connect again by itself: a new socket is needed."""
    lost: bool = False
    """A connection that had worked has broken. libzmq connects again under the same routing id, which a ROUTER
    ignores while it still holds the old connection: a new socket with a new routing id is sooner."""


NO_NEWS = HandshakeNews()

_Stage = Literal["down", "handshake", "up"]
_STAGES: dict[zmq.Event, _Stage] = {
    zmq.EVENT_CONNECTED: "handshake",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "up",
}
"""The stage that an event leads to; every other event leads to "down"."""


class HandshakeWatch:
    """Watches the handshakes of one connecting socket. Poll `monitor` for reading, then call `read`."""

    def __init__(self, socket: "zmq.Socket[Any]") -> None:
        """Attach to a socket that has not connected yet."""
        self._socket = socket
        self.monitor: zmq.Socket[Any] = socket.get_monitor_socket(_WATCHED)
        self._stage: _Stage = "down"
        self._failures = 0

    def read(self) -> HandshakeNews:
        """Read the events that have arrived. The last handshake counts."""
        news = NO_NEWS
        while self.monitor.poll(0):
            message = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            news = self._after(zmq.Event(message["event"]), message["value"], news)
        if self._failures >= _PATIENCE:
            self._failures = 0
            keyed = self._socket.get(zmq.MECHANISM) == zmq.CURVE
            news = HandshakeNews(suspicion=BROKEN_WITH_KEYS if keyed else BROKEN_WITHOUT_KEYS, lost=news.lost)
        return news

    def _after(self, event: zmq.Event, status: int, before: HandshakeNews) -> HandshakeNews:
        stage, self._stage = self._stage, _STAGES.get(event, "down")
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failures = 0
            return HandshakeNews(lost=before.lost)
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            if status == _DENIED:
                return HandshakeNews(refusal=KEY_REFUSED, stopped=True)
            return HandshakeNews(suspicion=KEYS_UNCHECKED, stopped=True)
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return HandshakeNews(suspicion=OTHER_SECURITY, stopped=True)
        if stage == "handshake":
            self._failures += 1
        elif stage == "up":
            return HandshakeNews(lost=True)
        return before

    def close(self) -> None:
        """Detach from the socket; call it before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(0)
