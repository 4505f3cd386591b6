"""Input images of jobs: read from disk when the job starts, so that queued jobs need no memory for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from imagegen_client import ImagegenError
from imagegen_gateway.core.job_limits import InputQueue
from imagegen_gateway.image_store import ImageStore
from imagegen_gateway.jobs.store import Job


class JobInputs:
    """Reads the input images of jobs in turns. It belongs to one event loop."""

    def __init__(self, images: ImageStore, queue: InputQueue) -> None:
        self._images = images
        self._queue = queue
        self._turns: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def read(self, job: Job) -> AsyncIterator[dict[str, bytes]]:
        """Wait for the turn of a job and return its input images by name; the turn ends with the block.

        Raises `ImagegenError` if a file does not exist any more.
        """
        if not job.inputs:
            yield {}
            return
        turn = self._turns[job.id] = asyncio.get_running_loop().create_future()
        self._queue.enter(job.id, job.owner, job.input_bytes)
        self._admit()
        try:
            await turn
            yield await self._read(job)
        finally:
            del self._turns[job.id]
            self._queue.leave(job.id, job.owner)
            self._admit()

    def _admit(self) -> None:
        for job_id in self._queue.admit():
            turn = self._turns[job_id]
            if not turn.done():  # a cancelled job leaves the queue in its own task
                turn.set_result(None)

    async def _read(self, job: Job) -> dict[str, bytes]:
        try:
            return {name: await self._images.read(job.input_file(name)) for name in job.inputs}
        except FileNotFoundError as error:
            raise ImagegenError("the job's input image no longer exists") from error

    async def remove(self, job: Job) -> None:
        """Remove the files of a job."""
        for name in job.inputs:
            await self._images.remove(job.input_file(name))
