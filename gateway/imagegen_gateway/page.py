"""The web page at `/`: its static files and the event stream of the fleet's state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen_gateway import sse
from imagegen_gateway.access import ApiKeyDep, ServicesDep
from imagegen_gateway.core.addresses import Network
from imagegen_gateway.fleet_feed import FleetFeed

STATIC = Path(__file__).with_name("static")

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Revalidated at each load, so that the page always matches the version of the gateway.
    "Cache-Control": "no-cache",
}


def _get_feed(request: Request) -> FleetFeed:
    feed: FleetFeed = request.app.state.feed
    return feed


router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """Return the page; it needs no key, and asks the user for one if the API does."""
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


@router.get("/fleet/events")
async def fleet_events(
    request: Request, services: ServicesDep, api_key: ApiKeyDep, feed: Annotated[FleetFeed, Depends(_get_feed)]
) -> Response:
    """Stream the state of the fleet once a second as server-sent events."""
    close = services.open_stream(api_key)
    return await sse.open_stream(request, feed.events(services.clients, services.stopping), close)


class _PageHeaders:
    """Middleware that adds the page's headers to all responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def install(app: FastAPI, worker_networks: Sequence[Network]) -> None:
    """Add the page, its static files and its event stream to an application."""
    app.state.feed = FleetFeed(worker_networks)
    app.include_router(router)
    app.mount("/static", _PageHeaders(StaticFiles(directory=STATIC)), name="static")
