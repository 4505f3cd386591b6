"""Headers that clients of OpenAI's API read from every response: request id, processing time and rate limit."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
PROCESSING = "openai-processing-ms"
RATE_LIMITS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
EXPOSED = (REQUEST_ID, PROCESSING, *RATE_LIMITS, "Retry-After", "x-should-retry", "Location")
"""Response headers that pages of other origins may read."""

_PREFIX = "/v1/"
_REQUEST_ID_STATE = "request_id"
_RATE_STATE = "rate_limit_headers"


def set_request_id(scope: Mapping[str, Any], request_id: str) -> None:
    """Set the id that the response reports: that of the fleet's request, which logs of the fleet contain."""
    scope["state"][_REQUEST_ID_STATE] = request_id


def get_request_id(scope: Mapping[str, Any]) -> str:
    """Return the id of a request; a new one if the fleet has no request for it."""
    request_id: str = scope["state"].setdefault(_REQUEST_ID_STATE, secrets.token_hex(16))
    return request_id


def set_rate_limit(scope: Mapping[str, Any], per_minute: float, remaining: float, reset_seconds: float) -> None:
    """Set the rate limit that the response reports: images per minute, those left, seconds until all are."""
    values = (f"{per_minute:g}", str(max(0, int(remaining))), f"{reset_seconds:.3f}s")
    scope["state"][_RATE_STATE] = dict(zip(RATE_LIMITS, values, strict=True))


class ResponseHeaders:
    """Middleware that adds these headers to the responses of the API, errors and streams included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to the response of an HTTP request to the API."""
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = get_request_id(scope)
                headers[PROCESSING] = str(round((time.monotonic() - started) * 1000))
                headers.update(scope["state"].get(_RATE_STATE, {}))
            await send(message)

        await self._app(scope, receive, send_with_headers)


class TrailingSlash:
    """Middleware that ignores a slash at the end of a path of the API.

    A redirect would need the URL that clients use, which a proxy with a path of its own hides.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an HTTP request without the slash."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path.endswith("/") and path.startswith(_PREFIX):
            scope = {**scope, "path": path.rstrip("/")}
        await self._app(scope, receive, send)
