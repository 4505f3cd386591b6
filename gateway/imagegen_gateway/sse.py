"""Server-sent events: streams with keep-alive comments, whose reader may disconnect at any time."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from imagegen_gateway.errors import ApiError, from_fleet
from imagegen_protocol import ImagegenError

T = TypeVar("T")

START_SECONDS = 5.0
"""Maximum wait for the first event of a stream; then the response starts without one."""
PING_SECONDS = 15.0
Events = AsyncGenerator[bytes, None]
First = asyncio.Future[bytes | None]
"""The first event of a stream, pending or done; None: the stream has none."""


class HungUpError(Exception):
    """The HTTP client disconnected before the response started."""


def event(name: str, data: BaseModel | str) -> bytes:
    """Return one event."""
    return format_sse_event(data_str=data if isinstance(data, str) else data.model_dump_json(), event=name)


async def open_stream(request: Request, events: Events, close: Callable[[], object]) -> Response:
    """Return a response that starts with the first event, or after `START_SECONDS` without one.

    What `events` raises before then is raised here, so that it becomes a status and headers; later, an
    `ImagegenError` or `ApiError` becomes the event `error`. `close` is called once, however the stream ends.
    """
    first: First = asyncio.ensure_future(anext(events, None))
    try:
        await unless_gone(request, asyncio.wait({first}, timeout=START_SECONDS))
        if first.done():
            first.result()
    except BaseException as error:
        await _stop(events, first)
        close()
        if isinstance(error, HungUpError):
            return Response(status_code=499)
        raise
    return EventStream(events, first, close)


class EventStream(StreamingResponse):
    """Sends events as they arrive. Calls `close` at the end."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, first: First, close: Callable[[], object]) -> None:
        # Proxies should pass each event on at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(with_pings(events, first), headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def with_pings(events: Events, first: First | None = None, seconds: float = PING_SECONDS) -> Events:
    """Yield `first` and the other events, with a comment after each `seconds` without one.

    An `ImagegenError` or `ApiError` of the events becomes the last event, `error`.
    """
    coming = first
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait({coming}, timeout=seconds)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            found, coming = coming.result(), None
            if found is None:
                return
            yield found
    except (ImagegenError, ApiError) as error:
        told = from_fleet(error) if isinstance(error, ImagegenError) else error
        yield event("error", json.dumps(told.body()))
    finally:
        await _stop(events, coming)


async def _stop(events: Events, coming: First | None) -> None:
    """Close the events, of which the next one may be pending."""
    if coming is not None:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
    await events.aclose()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`. Cancel it and raise `HungUpError` if the client disconnects first."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise HungUpError
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
