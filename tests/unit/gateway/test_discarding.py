"""Bodies of answered requests: read slowly, and not for long."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from imagegen_gateway import connection_limits
from imagegen_gateway.connection_limits import TimeoutProtocol
from imagegen_gateway.core.discard_rate import BYTES_PER_SECOND, DiscardRate

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
PART = 64 * 1024


class Transport(asyncio.Transport):
    """Records what a protocol does with its connection."""

    def __init__(self):
        super().__init__()
        self.sent, self.paused, self.aborted = b"", 0, False

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return self.aborted

    def write(self, data):
        self.sent += data

    def pause_reading(self):
        self.paused += 1

    def resume_reading(self):
        pass

    def abort(self):
        self.aborted = True

    close = abort


async def reject(scope, receive, send):
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 429, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def connect(data):
    """Return a connection that has received the first bytes of a request, and its response."""
    config = uvicorn.Config(reject, log_config=None)
    protocol, transport = TimeoutProtocol(config, ServerState(), {}), Transport()
    protocol._discard_rate = DiscardRate()
    protocol.connection_made(transport)
    protocol.data_received(data)
    while protocol.tasks:
        await asyncio.sleep(0)
    assert transport.sent.startswith(b"HTTP/1.1 429")
    return protocol, transport


def test_the_rest_of_a_rejected_body_is_read_slowly():
    async def scenario():
        protocol, transport = await connect(HEAD % 10**12)
        for _ in range(3):
            protocol.data_received(bytes(PART))
            protocol.flow.resume_reading()
        assert transport.paused == 3
        assert protocol._resuming.when() - protocol.loop.time() > 2 * PART / BYTES_PER_SECOND
        protocol.connection_lost(None)

    asyncio.run(scenario())


def test_a_rejected_body_without_an_end_ends_the_connection(monkeypatch):
    monkeypatch.setattr(connection_limits, "DISCARD_SECONDS", 0.01)

    async def scenario():
        protocol, transport = await connect(HEAD % 10**12)
        protocol.data_received(bytes(PART))  # sending on is no excuse
        async with asyncio.timeout(60):
            while not transport.aborted:
                await asyncio.sleep(0.001)
        protocol.connection_lost(None)

    asyncio.run(scenario())


def test_a_short_rejected_body_leaves_the_connection_open():
    async def scenario():
        protocol, transport = await connect(HEAD % 5)
        protocol.data_received(b"12345")
        assert protocol._discarding is None
        assert not transport.paused
        protocol.data_received(HEAD % 0)
        while protocol.tasks:
            await asyncio.sleep(0)
        assert transport.sent.count(b"HTTP/1.1 429") == 2
        assert not transport.aborted
        protocol.connection_lost(None)

    asyncio.run(scenario())


@pytest.mark.parametrize("connections", [1, 100])
def test_the_rate_is_that_of_all_connections_together(connections):
    rate = DiscardRate()
    pauses = [rate.pause(PART, 5.0) for _ in range(connections)]
    assert pauses[-1] == pytest.approx(connections * PART / BYTES_PER_SECOND)
    assert rate.pause(PART, 5000.0) == pytest.approx(PART / BYTES_PER_SECOND)
