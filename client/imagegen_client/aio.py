"""The client for asyncio: a thin layer over the blocking one, whose I/O thread does the work."""

import asyncio
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from imagegen_client.job import Job
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
    """Call `function` in the loop, from any thread; a loop that is closed has nobody left who waits."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _arrival(future: Future[Any]) -> asyncio.Future[None]:
    """Return a future of the running loop that is done once the other one is.

    It carries no outcome: an error that nobody waits for any more would be logged by the loop.
    """
    loop = asyncio.get_running_loop()
    arrival: asyncio.Future[None] = loop.create_future()

    def arrive() -> None:
        if not arrival.done():
            arrival.set_result(None)

    future.add_done_callback(lambda _: _call_in(loop, arrive))
    return arrival


class AsyncJob:
    """A request on its way, for one event loop. Made by `AsyncClient.submit`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._arrival = _arrival(job.future)

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

    @property
    def latest(self) -> Progress | None:
        """As `Job.latest`."""
        return self._job.latest

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
        await self._wait()
        return self._job.result()

    async def exception(self) -> ImagegenError | None:
        """Wait for the answer and return the error that it is, None for a result; cancelled as `result`."""
        await self._wait()
        return self._job.exception()

    async def _wait(self) -> None:
        try:
            # Shielded, since several may wait.
            await asyncio.shield(self._arrival)
        except asyncio.CancelledError:
            self._job.cancel()
            raise

    def progress(self) -> AsyncGenerator[Progress, None]:
        """Yield each sign of progress until the answer is there. Raises `ValueError` as `Job.progress` does.

        One consumer only; one that stops early leaves the request as it is.
        """
        self._job.signs()
        return self._follow()

    async def _follow(self) -> AsyncGenerator[Progress, None]:
        loop, signs, news = asyncio.get_running_loop(), self._job.signs(), asyncio.Event()
        self._job.wake_with(lambda: _call_in(loop, news.set))
        try:
            while True:
                news.clear()
                for sign in _taken(signs):
                    if sign is None:
                        signs.put(None)  # for whoever asks again
                        return
                    yield sign
                await news.wait()
        finally:
            self._job.wake_with(None)


def _taken(signs: "queue.SimpleQueue[Progress | None]") -> Iterator[Progress | None]:
    with suppress(queue.Empty):
        while True:
            yield signs.get_nowait()


class AsyncClient:
    """`Client` with `await`; its parameters are the same. Use it as an asynchronous context manager.

    It may be made outside of a loop; its jobs belong to the loop in which they were submitted.
    """

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        connect_timeout: float | None = None,
        retry_overloaded: bool = False,
        key: str | Path | None = None,
        broker_key: str | Path | None = None,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        self._client = Client(
            broker,
            connect_timeout=connect_timeout,
            retry_overloaded=retry_overloaded,
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
        """As `Client.close`, without holding up the loop. Cancelled, it goes on in the background."""
        await asyncio.to_thread(self._client.close)

    def submit(
        self, prompt: str, *, progress: bool = False, preview: bool = False, **options: Unpack[RequestOptions]
    ) -> AsyncJob:
        """As `Client.submit`: send a request off and return at once. Needs a running loop.

        Images are read and encoded here; `generate` and `map` do it on a thread beside the loop.
        """
        # Before anything is sent: a request whose job can't be handed out would be nobody's.
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
        """As `Client.generate`: make images of `prompt` and wait for them.

        `on_progress` is called, in the loop, with each sign of progress; `preview` as there. Whatever ends the
        waiting (an exception of `on_progress`, a cancelled task) cancels the request. Raises `ImagegenError`s.
        """
        follow = on_progress is not None
        if has_images(options):
            options = await asyncio.to_thread(with_frames, options)
        job = self.submit(prompt, progress=follow, preview=follow and preview, **options)
        try:
            if on_progress is not None:
                async with aclosing(job.progress()) as signs:
                    async for sign in signs:
                        on_progress(sign)
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
        """As `Client.map`: yield the result of each prompt, in order, at most `window` on their way.

        The first error is raised in its place; then, or when the generator is closed, what is on its way is
        cancelled.
        """
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
        """As `Client.stats`: return the broker's statistics.

        Raises `BrokerUnreachableError` when none came within `timeout` seconds.
        """
        future = self._client.request_stats(timeout)
        await _arrival(future)
        return future.result()

    async def models(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        """As `Client.models`: return the models that the fleet serves, and what each takes."""
        return served(await self.stats(timeout))
