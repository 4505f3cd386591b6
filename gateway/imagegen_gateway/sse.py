"""Server-sent events: streams that say now and then that they live, and whose reader may hang up at any time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

PING_SECONDS = 15.0
Events = AsyncGenerator[bytes, None]


class HungUpError(Exception):
    """Whoever asked is gone; there is nobody to answer."""


def event(name: str, data: BaseModel | str) -> bytes:
    """Return one event."""
    return format_sse_event(data_str=data if isinstance(data, str) else data.model_dump_json(), event=name)


class EventStream(StreamingResponse):
    """Sends events as they come; `close` is called at the end, whatever it is."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, close: Callable[[], object]) -> None:
        # Proxies should pass each event on at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(with_pings(events), headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def with_pings(events: Events, seconds: float = PING_SECONDS) -> Events:
    """Yield the events, and comments where there has been none for a while."""
    coming: asyncio.Future[bytes | None] | None = None
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
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what the work gives. If the client hangs up first, cancel it and raise `HungUpError`."""
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
