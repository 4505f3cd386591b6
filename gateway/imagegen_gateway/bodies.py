"""How long the body of a request may be."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Ends requests whose body is too long with 413: unread where its length is told, else on the way."""

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
        too_long, got = int(told) > self._max_bytes, 0

        async def counted() -> Message:
            nonlocal got
            if too_long:
                raise HTTPException(413)
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)
