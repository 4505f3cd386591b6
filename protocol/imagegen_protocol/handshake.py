"""Why a connection does not come about: libzmq tells it to a socket's monitor and to nobody else."""

from typing import Any

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
_FINAL = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the broker does not accept this key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "one side uses keys and the other does not, or the broker is none",
}
"""After these libzmq does not dial again by itself."""
_PATIENCE = 3
"""Handshakes that must break off in a row before it is no accident."""

KEY_REFUSED = _FINAL[zmq.EVENT_HANDSHAKE_FAILED_AUTH]
OTHER_SECURITY = _FINAL[zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL]
BROKEN_OFF = "the broker breaks off the handshake: its key is probably another one, or it uses none"


class HandshakeWatch:
    """Watches the handshakes of one dialling socket. Poll `monitor` for reading, then call `read`."""

    def __init__(self, socket: "zmq.Socket[Any]") -> None:
        """Attach to a socket that has not connected yet."""
        self._socket = socket
        self.monitor: zmq.Socket[Any] = socket.get_monitor_socket(_WATCHED)
        self._shaking = False
        self._failures = 0

    def read(self) -> str | None:
        """Take what has happened; return why the broker is out of reach for good, if it is."""
        reason = None
        while self.monitor.poll(0):
            event = zmq.Event(recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"])
            if event in _FINAL:
                self._shaking = False
                reason = _FINAL[event]
            elif event == zmq.EVENT_CONNECTED:
                self._shaking = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._shaking, self._failures = False, 0
            elif self._shaking:
                self._shaking = False
                self._failures += 1
        if self._failures >= _PATIENCE:
            self._failures = 0
            # Whether libzmq reads why the other side hangs up, or finds it gone, is a matter of luck.
            keyed = self._socket.get(zmq.MECHANISM) == zmq.CURVE
            reason = reason or (BROKEN_OFF if keyed else OTHER_SECURITY)
        return reason

    def close(self) -> None:
        """Let go of the socket; call it before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(0)
