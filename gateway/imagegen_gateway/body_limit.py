"""Limits on the size and duration of request bodies."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAUSE_SECONDS = 20.0
"""Maximum time between two parts of a body."""
BODY_SECONDS = 300.0
"""Maximum time for a whole body: 32 MiB at one megabit a second."""


class BodyLimit:
    """Middleware that rejects bodies that are too long (413) or arrive too slowly (408).

    A body whose Content-Length is too large is rejected before it is read.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject an HTTP request whose body is too long (413) or arrives too slowly (408)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The server has rejected any other Content-Length than a number.
        length = int(next((value for name, value in scope["headers"] if name == b"content-length"), b"0"))
        too_long, received, complete = length > self._max_bytes, 0, False
        deadline = time.monotonic() + BODY_SECONDS

        async def limited_receive() -> Message:
            nonlocal received, complete
            if too_long:
                raise HTTPException(413)
            # After the body, only a disconnect can follow, at any time.
            timeout = None if complete else min(PAUSE_SECONDS, deadline - time.monotonic())
            try:
                async with asyncio.timeout(timeout):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408) from error
            received += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            if received > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, limited_receive, send)
