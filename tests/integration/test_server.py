"""The broker's shell: it can be told to stop at any moment, from any thread, also when it has ended already."""

import pytest


def test_stopping_what_has_stopped_is_nothing(start_broker):
    server = start_broker()
    start_broker.stop(server)
    server.stop()
    server.reload()
    with pytest.raises(TimeoutError):
        server.snapshot(0.01)
