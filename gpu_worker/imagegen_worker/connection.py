"""The socket to one broker, replaced when its connection is dead."""

import secrets
import time

import zmq

from imagegen_protocol.handshake import NO_CHANGE, HandshakeMonitor, HandshakeReport
from imagegen_protocol.keys import CurveKeys
from imagegen_protocol.limits import MAX_CHUNK_BYTES
from imagegen_protocol.sockets import enable_keepalive
from imagegen_worker.backends import StartError

RECONNECT_SECONDS = 5.0
"""Delay before a new socket where libzmq does not reconnect by itself, such as after a rejected key."""
MIN_RECONNECT_SECONDS = 1.0
"""Minimum lifetime of a socket, even if its connection breaks at once."""
LINGER_MS = 1000


class Connection:
    """A DEALER socket to one broker. Each new socket has a new routing id."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        poller: zmq.Poller,
        endpoint: str,
        keys: CurveKeys | None,
    ) -> None:
        """Connect. Raises `StartError` for an endpoint that libzmq rejects."""
        self._context = context
        self._poller = poller
        self._endpoint = endpoint
        self._keys = keys
        self._reported = ""
        self._connected_at = time.monotonic()
        self.reconnect_at: float | None = None
        """When to open a new socket (monotonic seconds); None while libzmq reconnects by itself."""
        self._connect()

    def check(self, now: float) -> HandshakeReport:
        """Open a new socket if one is due; return a failed handshake whose reason is new, else `NO_CHANGE`."""
        news = self._watch.read()
        if news.stopped:
            self.reconnect_at = now + RECONNECT_SECONDS
        elif news.lost:
            self.reconnect_at = max(now, self._connected_at + MIN_RECONNECT_SECONDS)
        if self.reconnect_at is not None and now >= self.reconnect_at:
            self.reconnect(now)
        reason = news.refusal or news.suspicion
        if not reason:
            return NO_CHANGE
        reported, self._reported = self._reported, reason
        return NO_CHANGE if reason == reported else news

    def on_message(self) -> None:
        """Record that a message arrived, so that `check` reports the next failed handshake whatever its reason."""
        self._reported = ""

    def reconnect(self, now: float) -> None:
        """Replace the socket by a new one."""
        self.reconnect_at = None
        self._connected_at = now
        self.close()
        self._connect()

    def close(self) -> None:
        """Close the socket; messages sent last may still be delivered."""
        self._poller.unregister(self._watch.monitor)
        self._poller.unregister(self.socket)
        self._watch.close()
        self.socket.close(LINGER_MS)

    def _connect(self) -> None:
        dealer = self._context.socket(zmq.DEALER)
        # A ROUTER ignores a second connection under a routing id that is in use.
        dealer.setsockopt(zmq.ROUTING_ID, b"w" + secrets.token_bytes(15))
        # Queue nothing for an absent broker: late messages are stale, heartbeats most of all.
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        # A restarted broker waits two heartbeat intervals for the workers' lists: reconnect within them.
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        enable_keepalive(dealer)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES)
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
