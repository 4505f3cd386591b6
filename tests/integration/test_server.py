"""The broker's shell: it can be told to stop at any moment, from any thread, also when it has ended already."""

import pytest
import zmq


def test_stopping_what_has_stopped_is_nothing(start_broker):
    server = start_broker()
    start_broker.stop(server)
    server.stop()
    server.reload()
    with pytest.raises(TimeoutError):
        server.snapshot(0.01)


def test_a_connection_without_a_handshake_is_closed_after_10_seconds(start_broker):
    server = start_broker()
    for each in (server._client_socket, server._worker_socket):
        assert each.getsockopt(zmq.HANDSHAKE_IVL) == 10_000
