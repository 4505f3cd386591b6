"""The start of event streams: errors before it have their own status, errors after it are events."""

import asyncio
import json

import pytest
from starlette.requests import Request

from imagegen_gateway import sse
from imagegen_gateway.errors import ApiError
from imagegen_protocol import OverloadedError


class Connection:
    """One client connection; counts how often its stream is closed."""

    def __init__(self):
        self.closed = 0
        self.disconnected = asyncio.Event()

    async def receive(self):
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    def close(self):
        self.closed += 1

    async def open(self, events):
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, self.receive)
        return await sse.open_stream(request, events, self.close)

    async def serve(self, response):
        """Send the response; return its status and body."""
        sent = []

        async def send(message):
            sent.append(message)

        await response({"type": "http", "method": "POST"}, self.receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def failing(error):
    raise error
    yield b""


@pytest.mark.parametrize(
    "error", [OverloadedError("full", retry_after_seconds=3.0), ApiError(503, "storage_failed", "the disk fails")]
)
def test_an_error_before_the_first_event_is_raised(error):
    async def run():
        connection = Connection()
        with pytest.raises(type(error)) as caught:
            await connection.open(failing(error))
        return caught.value, connection.closed

    assert asyncio.run(run()) == (error, 1)


def test_an_error_after_the_first_event_is_the_last_event():
    async def events():
        yield b"one\n\n"
        raise OverloadedError("full", retry_after_seconds=3.0)

    async def run():
        connection = Connection()
        status, body = await connection.serve(await connection.open(events()))
        return status, body, connection.closed

    status, body, closed = asyncio.run(run())
    assert (status, closed) == (200, 1)
    first, event, data = body.strip().split(b"\n", 3)[0], *body.strip().split(b"\n")[-2:]
    assert (first, event) == (b"one", b"event: error")
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "overloaded"


def test_without_a_first_event_the_response_starts_after_a_timeout(monkeypatch):
    monkeypatch.setattr(sse, "START_SECONDS", 0.01)

    async def run():
        connection, go = Connection(), asyncio.Event()

        async def events():
            await go.wait()
            yield b"late\n\n"

        response = await connection.open(events())
        assert connection.closed == 0
        go.set()
        return await connection.serve(response), connection.closed

    assert asyncio.run(run()) == ((200, b"late\n\n"), 1)


def test_a_client_that_disconnects_before_the_response_starts_closes_the_stream():
    ended = []

    async def run():
        connection = Connection()

        async def events():
            try:
                connection.disconnected.set()
                await asyncio.Event().wait()
                yield b""
            finally:
                ended.append(True)

        response = await connection.open(events())
        return response.status_code, connection.closed

    assert asyncio.run(run()) == (499, 1)
    assert ended == [True]


def test_a_stream_without_events_is_served_and_closed():
    async def no_events():
        return
        yield b""

    async def run():
        connection = Connection()
        return await connection.serve(await connection.open(no_events())), connection.closed

    assert asyncio.run(run()) == ((200, b""), 1)


def test_keepalives_are_sent_between_events():
    closed = []

    async def run():
        go = asyncio.Event()

        async def events():
            try:
                yield b"one"
                await go.wait()
                yield b"two"
            finally:
                closed.append(True)

        received = []
        async for chunk in sse.with_keepalives(events(), seconds=0.001):
            received.append(chunk)
            if len(received) == 4:
                go.set()
        return received

    received = asyncio.run(run())
    assert received[0] == b"one"
    assert received[-1] == b"two"
    assert {*received[1:-1]} == {b": ping\n\n"}
    assert closed == [True]


def test_closing_a_stream_early_closes_its_events():
    closed = []

    async def run():
        async def events():
            try:
                yield b"one"
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        stream = sse.with_keepalives(events(), seconds=0.001)
        assert [await anext(stream), await anext(stream)] == [b"one", b": ping\n\n"]
        await stream.aclose()

    asyncio.run(run())
    assert closed == [True]
