"""The state of the fleet for the web page: one poll serves all open pages."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from msgspec import to_builtins
from msgspec.json import encode

from imagegen_client import Statistics
from imagegen_client.fleet import BrokerStatus, FleetSnapshot, images_per_second, sorted_workers
from imagegen_client.fleet_watch import RATE_SECONDS, TREND_LENGTH
from imagegen_gateway import sse
from imagegen_gateway.client_pool import ClientPool
from imagegen_gateway.core.addresses import Network
from imagegen_gateway.gpu_metrics import GpuMetricsReader
from imagegen_protocol import ImagegenError

POLL_SECONDS = 1.0
"""Interval between two requests for statistics, whatever the number of followers."""

_BROKER_FIELDS = (
    "strategy",
    "default_model",
    "models",
    "num_gpus",
    "clients",
    "requests",
    "queued_requests",
    "answers_per_second",
)
_GPU_FIELDS = (
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


class FleetFeed:
    """Polls the broker once a second while there are followers, and sends the same event to all of them."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        """Create a feed; `networks` are those in which it may read the metrics of workers."""
        self._history: deque[FleetSnapshot] = deque()
        self._trends: dict[str, deque[float]] = {}
        self._statistics: Statistics | None = None
        self._gpu_metrics = GpuMetricsReader(networks)
        self._last_answer = time.monotonic()
        self._event = b""
        self._changed = asyncio.Event()
        """Set once, after the next poll or at the end; then replaced."""
        self._followers = 0
        self._running: asyncio.Task[None] | None = None

    async def events(self, clients: ClientPool, stopping: asyncio.Event) -> sse.Events:
        """Yield an event `fleet` after each poll, and one at once if the state is known, until shutdown."""
        self._followers += 1
        try:
            if self._event and self._running is not None and not self._running.done():
                yield self._event
            while not stopping.is_set():
                if self._running is None or self._running.done():
                    self._running = asyncio.create_task(self._run(clients, stopping), name="fleet feed")
                running = self._running
                await self._changed.wait()  # nothing else: each follower of an event delays all other requests
                if running.done():
                    running.result()  # raises its error in all followers, whose pages reconnect
                if not stopping.is_set():
                    yield self._event
        finally:
            self._followers -= 1
            if not self._followers and self._running is not None:
                self._running.cancel()
                await asyncio.gather(self._running, return_exceptions=True)
                await self._gpu_metrics.close()

    async def _run(self, clients: ClientPool, stopping: asyncio.Event) -> None:
        """Poll until the gateway shuts down."""
        stopped, polling = asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(self._poll(clients))
        try:
            await asyncio.wait({stopped, polling}, return_when=asyncio.FIRST_COMPLETED)
            if polling.done():
                polling.result()
        finally:
            for task in (stopped, polling):
                task.cancel()
            await asyncio.gather(stopped, polling, return_exceptions=True)
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _poll(self, clients: ClientPool) -> None:
        while True:
            lost_for = None
            try:
                self._statistics = await clients.stats()
                self._last_answer = time.monotonic()
                self._gpu_metrics.refresh(self._statistics.per_gpu_stats)
            except ImagegenError:
                lost_for = time.monotonic() - self._last_answer
            self._record(FleetSnapshot(time.monotonic(), (BrokerStatus("", self._statistics, lost_for),)))
            self._event = sse.event("fleet", json.dumps(self._data()))
            self._wake()
            await asyncio.sleep(POLL_SECONDS)

    def _record(self, latest: FleetSnapshot) -> None:
        """Append a snapshot and the rates since the oldest one within `RATE_SECONDS`."""
        if self._history and latest.at - self._history[-1].at > RATE_SECONDS:
            # Without followers for a while: the average since then is not the current rate.
            self._history.clear()
            self._trends.clear()
        self._history.append(latest)
        while len(self._history) > 2 and latest.at - self._history[0].at > RATE_SECONDS:
            self._history.popleft()
        workers, stale = latest.workers(), latest.stale_workers()
        for name, rate in images_per_second(self._history[0], latest).items():
            if name not in stale:
                self._trends.setdefault(name, deque(maxlen=TREND_LENGTH)).append(round(rate, 3))
        for name in self._trends.keys() - workers.keys():
            del self._trends[name]

    def _data(self) -> dict[str, Any]:
        broker = self._history[-1].brokers[0]
        statistics = broker.statistics
        capabilities = b"" if statistics is None else encode(statistics.model_traits)
        return {
            "lost_for_seconds": broker.lost_for,
            "estimated_wait_seconds": broker.wait_seconds,
            **{name: None if statistics is None else to_builtins(statistics[name]) for name in _BROKER_FIELDS},
            # The page reloads /v1/models when this checksum changes.
            "models_mark": crc32(capabilities),
            "gpus": [
                {
                    **{field: row[field] for field in _GPU_FIELDS},
                    **self._gpu_metrics.get(name),
                    "images_per_second": list(self._trends.get(name, ())),
                }
                for name, row in sorted_workers(self._history[-1].workers())
            ],
        }
