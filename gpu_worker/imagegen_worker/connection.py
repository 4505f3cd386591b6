"""The socket to one broker: opened, watched, and replaced when its connection is dead."""

import secrets
import time

import zmq

from imagegen_protocol.handshake import NO_CHANGE, HandshakeMonitor, HandshakeReport
from imagegen_protocol.keys import CurveKeys
from imagegen_protocol.limits import MAX_FRAME_BYTES
from imagegen_protocol.sockets import enable_keepalive
from imagegen_worker.backends import StartError

REDIAL_SECONDS = 5.0
"""Seconds between sockets where libzmq does not connect again by itself, as after a refused key."""
MIN_REDIAL_SECONDS = 1.0
"""Seconds that a socket has at least, however soon its connection breaks."""
LINGER_MS = 1000


class Connection:
    """A DEALER to one broker; each new socket has a new routing id."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        poller: zmq.Poller,
        endpoint: str,
        keys: CurveKeys | None,
    ) -> None:
        """Dial. Raises `StartError` for an endpoint that libzmq does not take."""
        self._context = context
        self._poller = poller
        self._endpoint = endpoint
        self._keys = keys
        self._reason = ""
        self._dialled_at = time.monotonic()
        self.redial_at: float | None = None
        """When to open a new socket (monotonic seconds); None while libzmq takes care of it."""
        self._dial()

    def look(self, now: float) -> HandshakeReport:
        """Open a new socket if that is due; return news of the handshakes, each reason once."""
        news = self._watch.read()
        if news.stopped:
            self.redial_at = now + REDIAL_SECONDS
        elif news.lost:
            self.redial_at = max(now, self._dialled_at + MIN_REDIAL_SECONDS)
        if self.redial_at is not None and now >= self.redial_at:
            self.redial(now)
        reason = news.refusal or news.suspicion
        if not reason:
            return NO_CHANGE
        known, self._reason = self._reason, reason
        return NO_CHANGE if reason == known else news

    def heard(self) -> None:
        """Note that the broker has spoken: a later refusal is news again."""
        self._reason = ""

    def redial(self, now: float) -> None:
        """Open a new socket in place of the one there is."""
        self.redial_at = None
        self._dialled_at = now
        self.close()
        self._dial()

    def close(self) -> None:
        """Close the socket; what was sent last may still go out."""
        self._poller.unregister(self._watch.monitor)
        self._poller.unregister(self.socket)
        self._watch.close()
        self.socket.close(LINGER_MS)

    def _dial(self) -> None:
        dealer = self._context.socket(zmq.DEALER)
        # A new one for each socket: the broker ignores a second connection under the same routing id.
        dealer.setsockopt(zmq.ROUTING_ID, b"w" + secrets.token_bytes(15))
        # Queue nothing for a broker that is not there: what arrives late is stale, heartbeats most of all.
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        # A restarted broker waits two intervals for the workers' lists: be there in time.
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        enable_keepalive(dealer)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        dealer.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._keys.apply(dealer)
        self._watch = HandshakeMonitor(dealer)
        self.socket = dealer
        try:
            dealer.connect(self._endpoint)
        except zmq.ZMQError as error:
            self._watch.close()
            dealer.close(0)
            raise StartError(f"--broker {self._endpoint}: {error}") from error
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._watch.monitor, zmq.POLLIN)
