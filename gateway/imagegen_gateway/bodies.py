"""How long the body of a request may be, and how long it may take."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAUSE_SECONDS = 20.0
"""Between two parts of a body."""
BODY_SECONDS = 300.0
"""For all of it: the longest one at a megabit a second."""


class BodyLimit:
    """Ends requests whose body is too long with 413: unread where its length is told, else on the way.

    One that takes too long to come is ended with 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        # What is no number the server has refused.
        too_long, got, whole = int(told) > self._max_bytes, 0, False
        end = time.monotonic() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal got, whole
            if too_long:
                raise HTTPException(413)
            # Behind the body only a hanging up comes, for which there is time.
            patience = None if whole else min(PAUSE_SECONDS, end - time.monotonic())
            try:
                async with asyncio.timeout(patience):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408) from error
            got += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if got > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)
