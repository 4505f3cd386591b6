"""Asyncio client: a thin layer over the blocking client and its I/O thread."""

import asyncio
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from imagegen_client.job import Job, ProgressQueue
from imagegen_client.models import served
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions, has_images, with_frames
from imagegen_client.result import GenerationResult
from imagegen_client.sync import DEFAULT_BROKER, DEFAULT_WINDOW, Client
from imagegen_protocol import ImagegenError
from imagegen_protocol.statistics import Statistics

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call `function` in the loop, from any thread; do nothing if the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _when_done(future: Future[Any]) -> asyncio.Future[None]:
    """Return a future of the running loop that is done once `future` is.

    Its result is always None: the loop would log an exception that is never retrieved.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def set_done() -> None:
        if not done.done():
            done.set_result(None)

    future.add_done_callback(lambda _: _call_in(loop, set_done))
    return done


class AsyncJob:
    """A submitted request, for one event loop. Created by `AsyncClient.submit`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done = _when_done(job.future)

    def __repr__(self) -> str:
        return f"<Async{repr(self._job)[1:]}"

    @property
    def request_id(self) -> str:
        """See `Job.request_id`."""
        return self._job.request_id

    @property
    def seed(self) -> int:
        """Seed of the first image, known at submission."""
        return self._job.seed

    @property
    def latest(self) -> Progress | None:
        """See `Job.latest`."""
        return self._job.latest

    def done(self) -> bool:
        """Return whether the request has ended, with a result or an error."""
        return self._job.done()

    def cancel(self) -> bool:
        """See `Job.cancel`."""
        return self._job.cancel()

    async def result(self) -> GenerationResult:
        """Wait for the result. Raises the request's `ImagegenError`.

        Cancelling the waiting task cancels the request; `asyncio.shield` prevents that.
        """
        await self._wait()
        return self._job.result()

    async def exception(self) -> ImagegenError | None:
        """Wait for the answer and return its error, None for a result; cancellation as for `result`."""
        await self._wait()
        return self._job.exception()

    async def _wait(self) -> None:
        try:
            # Shielded: several tasks may wait for the same job.
            await asyncio.shield(self._done)
        except asyncio.CancelledError:
            self._job.cancel()
            raise

    def progress(self) -> AsyncGenerator[Progress, None]:
        """Yield progress events until the request ends. Raises `ValueError` as `Job.progress` does.

        For one consumer; stopping early does not cancel the request.
        """
        return self._iterate(self._job.progress_queue())

    async def _iterate(self, events: ProgressQueue) -> AsyncGenerator[Progress, None]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._job.set_progress_callback(lambda: _call_in(loop, arrived.set))
        try:
            while True:
                arrived.clear()
                for event in _read_all(events):
                    if event is None:
                        events.put(None)  # so that a second iteration ends too
                        return
                    yield event
                await arrived.wait()
        finally:
            self._job.set_progress_callback(None)


def _read_all(events: ProgressQueue) -> Iterator[Progress | None]:
    with suppress(queue.Empty):
        while True:
            yield events.get_nowait()


class AsyncClient:
    """Asyncio version of `Client`, with the same parameters. Use it as an asynchronous context manager.

    It may be created outside a running loop; a job belongs to the loop in which it was submitted.
    """

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
        receive_maximum: int | None = None,
        key: str | Path | None = None,
        broker_key: str | Path | None = None,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        self._client = Client(
            broker,
            connect_timeout=connect_timeout,
            retry_overloaded=retry_overloaded,
            receive_maximum=receive_maximum,
            key=key,
            broker_key=broker_key,
            tracer_provider=tracer_provider,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client without blocking the loop; if cancelled, closing continues in the background."""
        await asyncio.to_thread(self._client.close)

    def submit(
        self, prompt: str, *, progress: bool = False, preview: bool = False, **options: Unpack[RequestOptions]
    ) -> AsyncJob:
        """Submit a request and return immediately; see `Client.submit`. Raises `RuntimeError` outside a loop.

        Input images are read and encoded in the loop; `generate` and `map` use a thread for that.
        """
        # Checked before the request is sent.
        asyncio.get_running_loop()
        return AsyncJob(self._client.submit(prompt, progress=progress, preview=preview, **options))

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        preview: bool = False,
        **options: Unpack[RequestOptions],
    ) -> GenerationResult:
        """Generate images and wait for them; see `Client.generate`. `on_progress` is called in the loop.

        An exception of `on_progress` or the cancellation of the task cancels the request.
        """
        follow = on_progress is not None
        if has_images(options):
            options = await asyncio.to_thread(with_frames, options)
        job = self.submit(prompt, progress=follow, preview=follow and preview, **options)
        try:
            if on_progress is not None:
                async with aclosing(job.progress()) as events:
                    async for event in events:
                        on_progress(event)
            return await job.result()
        finally:
            job.cancel()

    def map(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        window: int = DEFAULT_WINDOW,
        **common: Unpack[RequestOptions],
    ) -> AsyncGenerator[GenerationResult, None]:
        """Yield the result of each prompt, in order; see `Client.map`."""
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        return self._map(iter(prompts), window, common)

    async def _map(
        self, prompts: Iterator[str | Mapping[str, Any]], window: int, common: RequestOptions
    ) -> AsyncGenerator[GenerationResult, None]:
        jobs: deque[AsyncJob] = deque()
        if has_images(common):
            common = await asyncio.to_thread(with_frames, common)
        try:
            for item in prompts:
                own: Mapping[str, Any] = {"prompt": item} if isinstance(item, str) else item
                if has_images(own):
                    own = await asyncio.to_thread(with_frames, cast(Any, own))
                jobs.append(self.submit(**cast(Any, {**common, **own})))
                if len(jobs) >= window:
                    yield await jobs[0].result()
                    jobs.popleft()
            while jobs:
                yield await jobs[0].result()
                jobs.popleft()
        finally:
            for job in jobs:
                job.cancel()

    async def stats(self, timeout: float = 10.0) -> Statistics:
        """Return the broker's statistics; see `Client.stats`."""
        future = self._client.request_stats(timeout)
        await _when_done(future)
        return future.result()

    async def models(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Return the models that the fleet serves; see `Client.models`."""
        return served(await self.stats(timeout))
