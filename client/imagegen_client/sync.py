"""Blocking client, for use from any number of threads."""

import secrets
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from imagegen_client.core import ClientCore
from imagegen_client.events import Answer, Payload, StatsRequested, SubmitRequested
from imagegen_client.job import Job
from imagegen_client.models import served
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions, build, with_frames
from imagegen_client.result import GenerationResult
from imagegen_client.tracing import RequestTracer, end_with
from imagegen_client.transport import Transport
from imagegen_protocol import ImagegenError, ProtocolError, messages
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.keys import read_curve_keys
from imagegen_protocol.limits import ID_BYTES, MAX_COUNT
from imagegen_protocol.seeds import random_seed
from imagegen_protocol.statistics import Statistics, from_msgpack

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

DEFAULT_BROKER = "tcp://127.0.0.1:5555"
DEFAULT_WINDOW = 256
"""Default maximum number of unfinished requests of `map`."""


class Client:
    """Client of a fleet; thread-safe. Use it as a context manager, or call `close`.

    `broker`: one endpoint (`tcp://host:port` or `ipc://path`) or several. With several, the client fails over to
    the next when a broker is dead or refuses it, and resends its unfinished requests. It connects at the first
    request. `connect_timeout`: seconds after which requests end in `BrokerUnreachableError` if no broker has ever
    answered; None waits. `retry_overloaded`: wait and retry when a broker's queue is full, instead of raising
    `OverloadedError`. `receive_maximum`: maximum number of answers that the broker sends before this client has
    acknowledged them; None: the broker's maximum. `key`, `broker_key`: for brokers that require keys, the paths of
    this client's `.key_secret` file and of the broker's `.key` file (`imagegen keygen`). `tracer_provider`: an
    OpenTelemetry tracer provider; each request becomes a span, the parent of the broker's and the worker's spans.

    Raises `ValueError` for an invalid endpoint, key file or maximum.
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
        endpoints = [broker] if isinstance(broker, str) else list(broker)
        for endpoint in endpoints:
            parse_endpoint(endpoint)
        if receive_maximum is not None and not 1 <= receive_maximum <= MAX_COUNT:
            raise ValueError(f"receive_maximum: expected an integer from 1 to {MAX_COUNT}, got {receive_maximum}")
        core = ClientCore(
            endpoints,
            connect_timeout=connect_timeout,
            retry_overloaded=retry_overloaded,
            receive_maximum=receive_maximum,
        )
        self._transport = Transport(core, read_curve_keys(key, broker_key))
        self._tracer = None if tracer_provider is None else RequestTracer(tracer_provider)
        # Closes a client that is garbage-collected, or still open when the program ends.
        self._closer = weakref.finalize(self, self._transport.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client; unfinished requests end in `ClientClosedError` and are cancelled. May be repeated."""
        self._closer.detach()
        self._transport.close()

    def submit(
        self, prompt: str, *, progress: bool = False, preview: bool = False, **options: Unpack[RequestOptions]
    ) -> Job:
        """Submit a request and return immediately; see `RequestOptions` for the options.

        `progress` requests progress events (`Job.progress`); `preview` requests them with small images of the
        unfinished image (`Progress.preview`), which not every model supports. Raises `InvalidRequestError` naming
        field, value and range, and `ClientClosedError`; `Job.result` raises all other errors.
        """
        key = secrets.token_bytes(ID_BYTES)
        submit, seed, frames = build(
            prompt, options, request_id=key, seed=random_seed(), progress=progress, preview=preview
        )
        job = Job(key, seed, transport=self._transport, owner=self, progress=progress or preview)
        if self._tracer is not None:
            submit, span = self._tracer.start(submit)
            end_with(job.future, span)
        self._transport.submit(SubmitRequested(submit, frames), job)
        return job

    def generate(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        preview: bool = False,
        **options: Unpack[RequestOptions],
    ) -> GenerationResult:
        """Generate images and wait for them; see `RequestOptions` for the options.

        `on_progress` is called in this thread with each progress event; `preview` adds small images of the
        unfinished image to the events. An exception of `on_progress` or Ctrl-C cancels the request. Raises
        the request's `ImagegenError`.
        """
        follow = on_progress is not None
        job = self.submit(prompt, progress=follow, preview=follow and preview, **options)
        try:
            if on_progress is not None:
                for event in job.progress():
                    on_progress(event)
            return job.result()
        finally:
            job.cancel()

    def map(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        window: int = DEFAULT_WINDOW,
        **common: Unpack[RequestOptions],
    ) -> Iterator[GenerationResult]:
        """Yield the result of each prompt, in order, with at most `window` unfinished requests.

        A prompt may be a mapping with `prompt` and options of its own, which override the `common` ones.
        `prompts` is read lazily, at most `window` ahead. The first error is raised in its place; then, or when
        the iterator is closed, all unfinished requests are cancelled. Raises `ValueError` for a `window` below 1.
        """
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        return self._map(iter(prompts), window, with_frames(common))

    def _map(
        self, prompts: Iterator[str | Mapping[str, Any]], window: int, common: RequestOptions
    ) -> Iterator[GenerationResult]:
        jobs: deque[Job] = deque()
        try:
            for item in prompts:
                jobs.append(self._submit_item(item, common))
                if len(jobs) >= window:
                    yield jobs[0].result()
                    jobs.popleft()
            while jobs:
                yield jobs[0].result()
                jobs.popleft()
        finally:
            for job in jobs:
                job.cancel()

    def _submit_item(self, item: str | Mapping[str, Any], common: RequestOptions) -> Job:
        own = {"prompt": item} if isinstance(item, str) else item
        return self.submit(**cast(Any, {**common, **own}))

    def stats(self, timeout: float = 10.0) -> Statistics:
        """Return the broker's statistics, with the fields of its HTTP `/stats`.

        A field is an attribute, `stats.num_gpus`, or an item, `stats["num_gpus"]`. Raises
        `BrokerUnreachableError` if the broker does not answer within `timeout` seconds.
        """
        return self.request_stats(timeout).result()

    def models(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Return the models that the fleet serves, the default first, what each takes, and its workers.

        `takes` is None until a worker has reported it. Raises as `stats` does.
        """
        return served(self.stats(timeout))

    def request_stats(self, timeout: float = 10.0) -> Future[Statistics]:
        """Request the statistics and return immediately; the future raises as `stats` does."""
        query = _StatsQuery()
        self._transport.submit(StatsRequested(secrets.token_bytes(ID_BYTES), timeout), query)
        return query.future


class _StatsQuery:
    """Response handler of a statistics query: sets `future` to the statistics or the error."""

    def __init__(self) -> None:
        self.future: Future[Statistics] = Future()
        self.future.set_running_or_notify_cancel()

    def on_complete(self, outcome: Answer | ImagegenError) -> None:
        if isinstance(outcome, ImagegenError):
            self.future.set_exception(outcome)
            return
        try:
            self.future.set_result(from_msgpack(outcome.payload[0]))
        except ProtocolError as error:
            self.future.set_exception(error)

    def on_progress(self, progress: messages.Progress, payload: Payload) -> None:
        raise AssertionError("a statistics query has no progress")

    def on_waiting(self, reason: str) -> None:
        raise AssertionError("the core reports requests only")
