"""Has jobs made: each is a request at the broker, asked for again until it has ended."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from imagegen_client import (
    CancelledError,
    ClientClosedError,
    DeadlineExceededError,
    GenerationResult,
    ImagegenError,
    OverloadedError,
    UnauthorizedError,
)
from imagegen_common.logs import log
from imagegen_gateway.errors import from_fleet
from imagegen_gateway.fleet import Fleet, InFlight
from imagegen_gateway.jobs.live import Live
from imagegen_gateway.jobs.store import Job, Store
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.results import MEDIA_TYPES, Results

_log = logging.getLogger("imagegen.gateway.jobs")

RETRY_SECONDS = 5.0
"""After an error that says nothing about the job."""
MAX_RETRY_SECONDS = 300.0


class Runner:
    """A task for each job that has not ended."""

    def __init__(
        self,
        store: Store,
        results: Results,
        fleet: Fleet,
        in_flight: InFlight,
        metrics: Metrics,
        on_end: Callable[[], object],
    ) -> None:
        """`on_end` is called when a job has ended, and its webhook may be due."""
        self._store = store
        self._results = results
        self._fleet = fleet
        self._in_flight = in_flight
        self._metrics = metrics
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._live: dict[str, Live] = {}
        metrics.jobs.set_function(lambda: self.unfinished)

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._tasks)

    def live(self, id_: str) -> Live | None:
        """Return how a job stands; None if it has ended."""
        return self._live.get(id_)

    async def resume(self) -> int:
        """Begin all that an earlier gateway has accepted and not ended; return how many it was."""
        jobs = await self._store.unfinished()
        for job in jobs:
            self.begin(job)
        return len(jobs)

    def begin(self, job: Job) -> None:
        """Have a job made."""
        self._live[job.id] = Live()
        self._in_flight.begin(job.owner)
        self._tasks[job.id] = asyncio.create_task(self._run(job), name=job.id)

    async def cancel(self, job: Job) -> None:
        """End a job as cancelled; one that has ended stays as it is."""
        await self._end(job, "cancelled")
        if (task := self._tasks.get(job.id)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Give up what runs; the next gateway begins it again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- one job -----------------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        wait = RETRY_SECONDS
        try:
            while not await self._try(job):
                # The images are made anew then: of as many as may wait, memory could not hold them.
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)
        except ClientClosedError:
            pass  # the gateway ends; the next one begins it again
        finally:
            self._in_flight.end(job.owner)
            self._live.pop(job.id).end()
            del self._tasks[job.id]

    async def _try(self, job: Job) -> bool:
        """Have a job made and end it; False: it can't be kept how it ended. Raises `ClientClosedError`."""
        try:
            try:
                await self._make(job)
            except ClientClosedError:
                raise
            except CancelledError as error:
                await self._end(job, "cancelled", error)
            except ImagegenError as error:
                await self._end(job, "failed", error)
        except ClientClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - the disk is full, the store is away, …
            self._metrics.storage_failures.inc()
            log(_log, logging.ERROR, "job can't be kept", job=job.id, error=f"{type(error).__name__}: {error}")
            return False
        return True

    async def _make(self, job: Job) -> None:
        try:
            inputs = {name: await self._results.read(job.input_file(name)) for name in job.inputs}
        except FileNotFoundError as error:
            raise ImagegenError("the image to start from is no longer there") from error
        while True:
            try:
                result = await self._ask(job, inputs)
            except (OverloadedError, UnauthorizedError) as error:
                wait = error.retry_after_seconds or RETRY_SECONDS
                log(_log, logging.WARNING, "job waits", job=job.id, seconds=wait, reason=error.code)
                await asyncio.sleep(wait)
            except (ImagegenError, sqlite3.Error):
                raise
            except Exception as error:  # asking again would help nobody
                _log.exception("a job could not be made")
                raise ImagegenError("the gateway failed; its log says why") from error
            else:
                await self._keep(job, result)
                return

    async def _ask(self, job: Job, inputs: dict[str, bytes]) -> GenerationResult:
        options: dict[str, Any] = {**job.options, **inputs}
        if (timeout := options.get("timeout_seconds")) is not None:
            options["timeout_seconds"] = left = job.created + timeout - time.time()
            if left <= 0:
                raise DeadlineExceededError(f"no result within {timeout:g} s")
        live = self._live[job.id]
        with self._fleet.client(job.owner) as client:
            request = client.submit(job.prompt, progress=True, preview=True, **options)
            log(_log, logging.DEBUG, "job asked for", job=job.id, request_id=request.request_id)
            try:
                running = False
                async with aclosing(request.progress()) as signs:
                    async for sign in signs:
                        if sign.state == "running" and not running:
                            running = True
                            await self._store.set_running(job.id, time.time())
                        live.tell(sign)
                return await request.result()
            finally:
                request.cancel()

    async def _keep(self, job: Job, result: GenerationResult) -> None:
        expires = time.time() + self._store.kept_seconds
        kept = []
        for index, data in enumerate(result.encoded):
            format_ = result.formats[index]
            name = f"{job.token}-{index}.{format_}"
            await self._results.keep(name, MEDIA_TYPES[format_], data, expires)
            width, height = result.sizes[index]
            kept.append({"file": name, "seed": result.seeds[index], "width": width, "height": height})
        await self._end(job, "succeeded", images=kept)

    async def _end(
        self, job: Job, state: str, error: ImagegenError | None = None, images: list[dict[str, Any]] | None = None
    ) -> None:
        told = None if error is None else from_fleet(error).body()["error"]
        if await self._store.finish(job.id, state, time.time(), images=images, error=told):
            self._metrics.jobs_ended.labels(outcome=state).inc()
            log(_log, logging.INFO, "job ended", job=job.id, outcome=state)
            self._on_end()
            for name in job.inputs:
                await self._results.remove(job.input_file(name))
