"""The client for asyncio: a thin layer over the blocking one, whose I/O thread does the work."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from imagegen_client.job import Job
from imagegen_client.result import GenerationResult
from imagegen_client.sync import DEFAULT_BROKER, Client
from imagegen_protocol.messages import Progress


class AsyncJob:
    """A request on its way, for one event loop. Made by `AsyncClient.submit`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __repr__(self) -> str:
        return f"<Async{repr(self._job)[1:]}"

    @property
    def request_id(self) -> str:
        """As `Job.request_id`."""
        return self._job.request_id

    @property
    def seed(self) -> int:
        """The seed of the first image, known before it is made."""
        return self._job.seed

    def done(self) -> bool:
        """Return whether the answer, good or bad, is there."""
        return self._job.done()

    def cancel(self) -> bool:
        """As `Job.cancel`."""
        return self._job.cancel()

    async def result(self) -> GenerationResult:
        """Wait for the answer. Raises the `ImagegenError` it is.

        Cancelling the task that waits here cancels the request (`asyncio.shield` prevents it).
        """
        try:
            return await asyncio.wrap_future(self._job.future)
        except asyncio.CancelledError:
            self._job.cancel()
            raise

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield each sign of progress until the answer is there; see `Job.progress`."""
        loop = asyncio.get_running_loop()
        signs: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._job.listen(lambda sign: loop.call_soon_threadsafe(signs.put_nowait, sign))
        while (sign := await signs.get()) is not None:
            yield sign


class AsyncClient:
    """`Client` with `await`; its parameters are the same. Use it as an asynchronous context manager."""

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
    ) -> None:
        self._client = Client(broker, connect_timeout=connect_timeout, retry_overloaded=retry_overloaded)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
