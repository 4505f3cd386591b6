"""Server-sent events: streams with keep-alive comments, closed when the client disconnects."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from imagegen_gateway.errors import ApiError, to_api_error
from imagegen_protocol import ImagegenError

T = TypeVar("T")

START_SECONDS = 5.0
"""Maximum wait for the first event of a stream; then the response starts without one."""
KEEPALIVE_SECONDS = 15.0
"""Time without events after which a comment is sent."""
OPENAPI_CONTENT = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["event", "data"],
        }
    }
}
"""OpenAPI's description of a stream of events."""
Events = AsyncGenerator[bytes, None]
First = asyncio.Future[bytes | None]
"""The pending first event of a stream; its result is None if the stream has no events."""


class ClientDisconnectedError(Exception):
    """The HTTP client disconnected before the response started."""


def event(name: str, data: BaseModel | str) -> bytes:
    """Return one encoded event."""
    return format_sse_event(data_str=data if isinstance(data, str) else data.model_dump_json(), event=name)


async def open_stream(request: Request, events: Events, close: Callable[[], object]) -> Response:
    """Return a response that starts with the first event, or after `START_SECONDS` without one.

    What `events` raises before then is raised here, so that it becomes a status and headers; later, an
    `ImagegenError` or `ApiError` becomes the event `error`. `close` is called once, however the stream ends.
    """
    first: First = asyncio.ensure_future(anext(events, None))
    try:
        await unless_disconnected(request, asyncio.wait({first}, timeout=START_SECONDS))
        if first.done():
            first.result()
    except BaseException as error:
        await _stop(events, first)
        close()
        if isinstance(error, ClientDisconnectedError):
            return Response(status_code=499)
        raise
    return EventStream(events, first, close)


class EventStream(StreamingResponse):
    """Sends events as they arrive. Calls `close` at the end."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, first: First, close: Callable[[], object]) -> None:
        # Proxies must not buffer events.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(with_keepalives(events, first), headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def with_keepalives(
    events: Events, first: First | None = None, seconds: float = KEEPALIVE_SECONDS
) -> Events:
    """Yield `first` and the other events, with a comment after each `seconds` without one.

    An `ImagegenError` or `ApiError` of the events becomes the last event, `error`.
    """
    pending = first
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            chunk, pending = pending.result(), None
            if chunk is None:
                return
            yield chunk
    except (ImagegenError, ApiError) as error:
        yield event("error", json.dumps(to_api_error(error).body()))
    finally:
        await _stop(events, pending)


async def _stop(events: Events, pending: First | None) -> None:
    """Close an event generator and cancel its pending event."""
    if pending is not None:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
    await events.aclose()


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises `ClientDisconnectedError`, and cancels it, if the client disconnects."""
    running = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({running, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientDisconnectedError
    finally:
        for task in (running, disconnected):
            task.cancel()
        await asyncio.gather(running, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
