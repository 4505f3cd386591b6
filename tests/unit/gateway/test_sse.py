"""The start of event streams: errors before it have their own status, errors after it are events."""

import asyncio
import json

import pytest
from starlette.requests import Request

from imagegen_gateway import sse
from imagegen_gateway.errors import ApiError
from imagegen_protocol import OverloadedError


class Opening:
    """Opens a stream of `events` and counts how often it is closed."""

    def __init__(self):
        self.closed = 0
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def close(self):
        self.closed += 1

    async def open(self, events):
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, self.receive)
        return await sse.open_stream(request, events, self.close)

    async def serve(self, response):
        """Return what the response sends."""
        sent = []

        async def send(message):
            sent.append(message)

        await response({"type": "http", "method": "POST"}, self.receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def refused(error):
    raise error
    yield b""


@pytest.mark.parametrize(
    "error", [OverloadedError("full", retry_after_seconds=3.0), ApiError(503, "storage_failed", "the disk fails")]
)
def test_an_error_before_the_first_event_is_raised(error):
    async def run():
        opening = Opening()
        with pytest.raises(type(error)) as caught:
            await opening.open(refused(error))
        return caught.value, opening.closed

    assert asyncio.run(run()) == (error, 1)


def test_an_error_after_the_first_event_is_the_last_event():
    async def events():
        yield b"one\n\n"
        raise OverloadedError("full", retry_after_seconds=3.0)

    async def run():
        opening = Opening()
        status, body = await opening.serve(await opening.open(events()))
        return status, body, opening.closed

    status, body, closed = asyncio.run(run())
    assert (status, closed) == (200, 1)
    first, event, data = body.strip().split(b"\n", 3)[0], *body.strip().split(b"\n")[-2:]
    assert (first, event) == (b"one", b"event: error")
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "overloaded"


def test_without_a_first_event_the_response_starts_after_a_while(monkeypatch):
    monkeypatch.setattr(sse, "START_SECONDS", 0.01)

    async def run():
        opening, go = Opening(), asyncio.Event()

        async def events():
            await go.wait()
            yield b"late\n\n"

        response = await opening.open(events())
        assert opening.closed == 0
        go.set()
        return await opening.serve(response), opening.closed

    assert asyncio.run(run()) == ((200, b"late\n\n"), 1)


def test_a_client_that_disconnects_before_the_response_starts_closes_the_stream():
    ended = []

    async def run():
        opening = Opening()

        async def events():
            try:
                opening.gone.set()
                await asyncio.Event().wait()
                yield b""
            finally:
                ended.append(True)

        response = await opening.open(events())
        return response.status_code, opening.closed

    assert asyncio.run(run()) == (499, 1)
    assert ended == [True]


def test_a_stream_without_events_is_served_and_closed():
    async def nothing():
        return
        yield b""

    async def run():
        opening = Opening()
        return await opening.serve(await opening.open(nothing())), opening.closed

    assert asyncio.run(run()) == ((200, b""), 1)
