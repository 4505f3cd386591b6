"""Socket options that every role sets; docs/decisions/0014-socket-options.md gives the reasons."""

from typing import Any

import zmq

KEEPALIVE_IDLE_SECONDS = 10
"""Seconds without traffic after which the kernel starts to probe a connection."""
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 4
"""Unanswered probes after which the kernel closes a connection."""
UNACKNOWLEDGED_SECONDS = 30
"""Seconds for which sent bytes may stay unacknowledged; then the kernel closes the connection. Keepalive probes
only idle connections: without this limit a retransmission is repeated for about 15 minutes."""


def close_dead_links(socket: "zmq.Socket[Any]") -> None:
    """Have the kernel close connections whose other end is gone, within 30 s; call it before `bind` or `connect`.

    ZeroMQ's own heartbeats stay off: their timer aborts the process (`!_io_error`) when it fires after a
    connection has broken while its input was stopped. The protocol's heartbeats detect silent peers sooner.
    """
    socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_SECONDS * 1000)
