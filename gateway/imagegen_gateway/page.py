"""The page at `/`: its files, and a stream of how the fleet stands for all who watch it."""

import asyncio
import json
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from msgspec import to_builtins
from msgspec.json import encode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen_client import Statistics
from imagegen_client.fleet import BrokerStatus, FleetSnapshot, images_per_second, sorted_workers
from imagegen_client.fleet_watch import RATE_SECONDS, TREND_LENGTH
from imagegen_gateway import sse
from imagegen_gateway.access import TheCaller, TheServices
from imagegen_gateway.fleet import Fleet
from imagegen_gateway.gpu_readings import CardReadings
from imagegen_protocol import ImagegenError

LOOK_SECONDS = 1.0
"""Between two looks at the broker, however many watch."""
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
    # Asked for again each time, and sent only if it has changed: a new gateway never meets an old page.
    "Cache-Control": "no-cache",
}

_OF_BROKER = (
    "strategy",
    "default_model",
    "models",
    "num_gpus",
    "clients",
    "requests",
    "queued_requests",
    "answers_per_second",
)
_OF_GPU = (
    "worker",
    "host",
    "gpu_id",
    "device",
    "models",
    "warm_models",
    "state",
    "current_queue_depth",
    "running",
    "capacity",
    "max_batch_size",
    "batching",
    "seconds_per_image",
    "total_images",
    "total_failed",
)


class Feed:
    """Looks at the fleet once a second while anybody watches, and tells all of them the same."""

    def __init__(self) -> None:
        self._looks: deque[FleetSnapshot] = deque()
        self._trends: dict[str, deque[float]] = {}
        self._statistics: Statistics | None = None
        self._readings = CardReadings()
        self._heard = time.monotonic()
        self._told = ""
        self._news: asyncio.Future[None] | None = None
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None

    async def events(self, fleet: Fleet, stopping: asyncio.Event) -> sse.Events:
        """Yield an event `fleet` a look, from the next one on, until the gateway stops."""
        stopped = asyncio.ensure_future(stopping.wait())
        self._watchers += 1
        try:
            while not stopped.done():
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._look(fleet), name="fleet feed")
                if self._news is None:
                    self._news = asyncio.get_running_loop().create_future()
                waited: set[asyncio.Future[Any]] = {self._news, stopped, self._looking}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if self._looking.done():
                    self._looking.result()  # it failed: so do all who watch, and come again
                if not stopped.done():
                    yield sse.event("fleet", self._told)
        finally:
            stopped.cancel()
            self._watchers -= 1
            if not self._watchers and self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
                await self._readings.close()

    async def _look(self, fleet: Fleet) -> None:
        while True:
            lost_for = None
            try:
                self._statistics = await fleet.stats()
                self._heard = time.monotonic()
                self._readings.refresh(self._statistics.per_gpu_stats)
            except ImagegenError:
                lost_for = time.monotonic() - self._heard
            self._remember(FleetSnapshot(time.monotonic(), (BrokerStatus("", self._statistics, lost_for),)))
            self._told = json.dumps(self._shown())
            news, self._news = self._news, None
            if news is not None:
                news.set_result(None)
            await asyncio.sleep(LOOK_SECONDS)

    def _remember(self, look: FleetSnapshot) -> None:
        if self._looks and look.at - self._looks[-1].at > RATE_SECONDS:
            # Nobody has watched for a while: what was made since is no rate of now.
            self._looks.clear()
            self._trends.clear()
        self._looks.append(look)
        while len(self._looks) > 2 and look.at - self._looks[0].at > RATE_SECONDS:
            self._looks.popleft()
        there, unheard = look.workers(), look.stale_workers()
        for name, rate in images_per_second(self._looks[0], look).items():
            if name not in unheard:
                self._trends.setdefault(name, deque(maxlen=TREND_LENGTH)).append(round(rate, 3))
        for name in self._trends.keys() - there.keys():
            del self._trends[name]

    def _shown(self) -> dict[str, Any]:
        broker = self._looks[-1].brokers[0]
        statistics = broker.statistics
        traits = b"" if statistics is None else encode(statistics.model_traits)
        return {
            "lost_for_seconds": broker.lost_for,
            "estimated_wait_seconds": broker.wait_seconds,
            **{name: None if statistics is None else to_builtins(statistics[name]) for name in _OF_BROKER},
            # With another mark there is news at /v1/models.
            "models_mark": crc32(traits),
            "gpus": [
                {
                    **{field: row[field] for field in _OF_GPU},
                    **self._readings.of(name),
                    "images_per_second": list(self._trends.get(name, ())),
                }
                for name, row in sorted_workers(self._looks[-1].workers())
            ],
        }


def _feed(request: Request) -> Feed:
    feed: Feed = request.app.state.feed
    return feed


router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """Return the page; it asks for a key itself if one is needed."""
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


@router.get("/fleet/events")
async def fleet_events(
    request: Request, services: TheServices, caller: TheCaller, feed: Annotated[Feed, Depends(_feed)]
) -> Response:
    """Tell how the fleet stands, once a second, with server-sent events."""
    close = services.open_stream(caller)
    return await sse.open_stream(request, feed.events(services.fleet, services.stopping), close)


class _WithHeaders:
    """Adds the page's headers to what an application answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, with_headers)


def install(app: FastAPI) -> None:
    """Serve the page, its files and its stream."""
    app.state.feed = Feed()
    app.include_router(router)
    app.mount("/static", _WithHeaders(StaticFiles(directory=STATIC)), name="static")
