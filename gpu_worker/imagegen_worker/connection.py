"""The socket of one broker: dialled, watched, and dialled afresh where libzmq has given up."""

import zmq

from imagegen_protocol.handshake import HandshakeWatch
from imagegen_protocol.keys import DialKeys
from imagegen_protocol.limits import MAX_FRAME_BYTES
from imagegen_worker.backends import StartError

REDIAL_SECONDS = 5.0
"""After a refused handshake: the operator may just be about to copy our key."""
LINGER_MS = 1000


class Connection:
    """A DEALER that stays the same peer over all its sockets."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        poller: zmq.Poller,
        endpoint: str,
        routing_id: bytes,
        keys: DialKeys | None,
    ) -> None:
        """Dial. Raises `StartError` for an endpoint that libzmq does not take."""
        self._context = context
        self._poller = poller
        self._endpoint = endpoint
        self._routing_id = routing_id
        self._keys = keys
        self._refusal = ""
        self.redial_at: float | None = None
        """When to dial afresh (monotonic seconds); None while libzmq takes care of it."""
        self._dial()

    def look(self, now: float) -> str | None:
        """Dial afresh if that is due, look at the handshakes; return why we are refused, once for each reason."""
        if self.redial_at is not None and now >= self.redial_at:
            self.redial_at = None
            self.close()
            self._dial()
        reason = self._watch.read()
        if reason is None:
            return None
        self.redial_at = now + REDIAL_SECONDS
        known, self._refusal = self._refusal, reason
        return None if reason == known else reason

    def heard(self) -> None:
        """Note that the broker has spoken: a later refusal is news again."""
        self._refusal = ""

    def close(self) -> None:
        """Close the socket; what was sent last may still go out."""
        self._poller.unregister(self._watch.monitor)
        self._poller.unregister(self.socket)
        self._watch.close()
        self.socket.close(LINGER_MS)

    def _dial(self) -> None:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, self._routing_id)
        # Queue nothing for a broker that is not there: what arrives late is stale, heartbeats most of all.
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        # A restarted broker waits two intervals for the workers' lists: be there in time.
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        dealer.setsockopt(zmq.TCP_KEEPALIVE, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        dealer.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._keys.apply(dealer)
        self._watch = HandshakeWatch(dealer)
        self.socket = dealer
        try:
            dealer.connect(self._endpoint)
        except zmq.ZMQError as error:
            self._watch.close()
            dealer.close(0)
            raise StartError(f"--broker {self._endpoint}: {error}") from error
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._watch.monitor, zmq.POLLIN)
