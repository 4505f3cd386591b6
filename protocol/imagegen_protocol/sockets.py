"""Socket options that broker, worker and client set; docs/decisions/0014-socket-options.md states the reasons."""

from typing import Any

import zmq

KEEPALIVE_IDLE_SECONDS = 10
"""Seconds without traffic after which the kernel starts to probe a connection."""
KEEPALIVE_INTERVAL_SECONDS = 5
"""Seconds between two probes."""
KEEPALIVE_PROBES = 4
"""Unanswered probes after which the kernel closes a connection."""
UNACKNOWLEDGED_SECONDS = 30
"""Maximum seconds for which sent bytes are unacknowledged; then the kernel closes the connection. Keepalive only
probes idle connections: without this limit the kernel retransmits for about 15 minutes."""


def enable_keepalive(socket: "zmq.Socket[Any]") -> None:
    """Make the kernel close dead connections within 30 s; call it before `bind` or `connect`.

    ZeroMQ's own heartbeats stay off: their timer aborts the process (`!_io_error`) when it fires after a
    connection has broken while its input was stopped. The protocol's heartbeats detect silent peers sooner.
    """
    socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_SECONDS * 1000)
