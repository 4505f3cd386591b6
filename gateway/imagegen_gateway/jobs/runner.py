"""Execution of jobs: each job is a request to the fleet, submitted again until the job has ended."""

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
from imagegen_gateway.client_pool import ClientPool, InFlightCounter
from imagegen_gateway.core.job_limits import JobQuota
from imagegen_gateway.errors import bounded_wait, from_imagegen_error
from imagegen_gateway.image_store import MEDIA_TYPES, ImageStore
from imagegen_gateway.jobs.inputs import JobInputs
from imagegen_gateway.jobs.progress import JobProgress
from imagegen_gateway.jobs.store import Job, JobStore
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.results import check_result
from imagegen_protocol.declaration import join_images

_log = logging.getLogger("imagegen.gateway.jobs")

RETRY_SECONDS = 5.0
"""Delay before the first retry after a storage failure, or after a temporary error without a retry delay."""
MAX_RETRY_SECONDS = 300.0
"""Maximum delay between retries after storage failures."""


class JobRunner:
    """One asyncio task for each job that has not ended."""

    def __init__(
        self,
        store: JobStore,
        images: ImageStore,
        inputs: JobInputs,
        clients: ClientPool,
        quota: JobQuota,
        in_flight: InFlightCounter,
        metrics: Metrics,
        on_end: Callable[[], object],
    ) -> None:
        """Create a runner without jobs. `on_end` is called after each end of a job: its webhook may be due."""
        self._store = store
        self._images = images
        self._inputs = inputs
        self._clients = clients
        self._quota = quota
        self._in_flight = in_flight
        self._metrics = metrics
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, JobProgress] = {}
        metrics.jobs.set_function(lambda: self.unfinished)

    @property
    def unfinished(self) -> int:
        """Number of jobs that have not ended."""
        return len(self._tasks)

    def progress(self, id_: str) -> JobProgress | None:
        """Return the progress of a job; None if it has ended."""
        return self._progress.get(id_)

    async def resume(self) -> int:
        """Start all unfinished jobs of an earlier gateway process; return their number."""
        jobs = await self._store.unfinished()
        for job in jobs:
            self._quota.add(job.owner, job.input_bytes)
            self.start(job)
        return len(jobs)

    def start(self, job: Job) -> None:
        """Start the task of a stored job. The caller has counted it in the quota; it is removed at its end."""
        self._progress[job.id] = JobProgress()
        self._in_flight.begin(job.owner)
        self._tasks[job.id] = asyncio.create_task(self._run(job), name=job.id)

    async def cancel(self, job: Job) -> None:
        """End a job as cancelled; no effect on a job that has ended."""
        await self._end(job, "cancelled")
        if (task := self._tasks.get(job.id)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Cancel all tasks without ending their jobs; the next gateway process resumes the jobs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- one job -----------------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        wait = RETRY_SECONDS
        try:
            while not await self._attempt(job):
                # The images are generated again: memory could not hold the results of all waiting jobs.
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)
        except ClientClosedError:
            pass  # the gateway shuts down; the next process resumes the job
        finally:
            self._in_flight.end(job.owner)
            self._quota.remove(job.owner, job.input_bytes)
            self._progress.pop(job.id).finish()
            del self._tasks[job.id]

    async def _attempt(self, job: Job) -> bool:
        """Generate and end a job. Return False if its end can't be stored. Raises `ClientClosedError`."""
        try:
            try:
                await self._generate(job)
            except ClientClosedError:
                raise
            except CancelledError as error:
                await self._end(job, "cancelled", error)
            except ImagegenError as error:
                await self._end(job, "failed", error)
        except ClientClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - any error of the disk, the database or the image store
            self._metrics.storage_failures.inc()
            reason = f"{type(error).__name__}: {error}"
            log(_log, logging.ERROR, "job could not be stored", job=job.id, error=reason)
            return False
        return True

    async def _generate(self, job: Job) -> None:
        async with self._inputs.read(job) as inputs:
            result = await self._result(job, inputs)
        await self._store_images(job, result)

    async def _result(self, job: Job, inputs: dict[str, bytes]) -> GenerationResult:
        """Submit a job, again after temporary errors; return its checked result. Raises `ImagegenError`."""
        while True:
            try:
                return check_result(await self._request(job, inputs), job.options)
            except (OverloadedError, UnauthorizedError) as error:
                wait = bounded_wait(error.retry_after_seconds or RETRY_SECONDS)
                log(_log, logging.WARNING, "job delayed", job=job.id, seconds=wait, reason=error.code)
                await asyncio.sleep(wait)
            except (ImagegenError, sqlite3.Error):
                raise
            except Exception as error:  # a retry would fail in the same way
                _log.exception("job raised an unexpected error")
                raise ImagegenError("internal error of the gateway; see its log") from error

    async def _request(self, job: Job, inputs: dict[str, bytes]) -> GenerationResult:
        """Submit a job's request and return the result, reporting progress. Raises `ImagegenError`."""
        options: dict[str, Any] = {**job.options, **join_images(inputs)}
        if (timeout := options.get("timeout_seconds")) is not None:
            options["timeout_seconds"] = left = job.created + timeout - time.time()
            if left <= 0:
                raise DeadlineExceededError(f"no result within {timeout:g} s")
        progress = self._progress[job.id]
        with self._clients.client(job.owner) as client:
            request = client.submit(job.prompt, progress=True, preview=True, **options)
            log(_log, logging.DEBUG, "job submitted", job=job.id, request_id=request.request_id)
            try:
                running = False
                async with aclosing(request.progress()) as reports:
                    async for report in reports:
                        if report.state == "running" and not running:
                            running = True
                            await self._store.set_running(job.id, time.time())
                        progress.update(report)
                return await request.result()
            finally:
                request.cancel()

    async def _store_images(self, job: Job, result: GenerationResult) -> None:
        expires = time.time() + self._store.retention_seconds
        stored = []
        for index, data in enumerate(result.encoded):
            format_ = result.formats[index]
            name = f"{job.token}-{index}.{format_}"
            await self._images.publish(name, MEDIA_TYPES[format_], data, expires)
            width, height = result.sizes[index]
            stored.append({"file": name, "seed": result.seeds[index], "width": width, "height": height})
        # With the first image: a job that failed has no warnings.
        stored[0]["warnings"] = result.warnings
        await self._end(job, "succeeded", images=stored)

    async def _end(
        self, job: Job, state: str, error: ImagegenError | None = None, images: list[dict[str, Any]] | None = None
    ) -> None:
        body = None if error is None else from_imagegen_error(error).body()["error"]
        if await self._store.finish(job.id, state, time.time(), images=images, error=body):
            self._metrics.jobs_ended.labels(outcome=state).inc()
            log(_log, logging.INFO, "job ended", job=job.id, outcome=state)
            self._on_end()
            await self._inputs.remove(job)
