"""The blocking client; safe to use from any number of threads."""

import secrets
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from imagegen_client.core import ClientCore
from imagegen_client.events import Answer, Payload, StatsAsked, SubmitAsked
from imagegen_client.job import Job
from imagegen_client.models import served
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions, build, with_frames
from imagegen_client.result import GenerationResult
from imagegen_client.tracing import Traces, end_with
from imagegen_client.transport import Transport
from imagegen_protocol import ImagegenError, ProtocolError, messages
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.keys import read_dial_keys
from imagegen_protocol.limits import ID_BYTES
from imagegen_protocol.seeds import random_seed
from imagegen_protocol.statistics import Statistics, from_msgpack

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

DEFAULT_BROKER = "tcp://127.0.0.1:5555"
DEFAULT_WINDOW = 256
"""Requests that `map` keeps on their way at a time."""


class Client:
    """A connection to a fleet, for any number of threads; use it as a context manager, or `close` it.

    `broker`: one endpoint (`tcp://host:port`) or several; with several the client turns to the next when one
    is dead, and takes its unfinished requests along. Nothing is sent before the first request.
    `connect_timeout`: seconds after which requests end in `BrokerUnreachableError` if no broker has ever
    answered; None waits for one. `retry_overloaded`: wait and ask again when a broker's queue is full, in
    place of raising `OverloadedError`. `key`, `broker_key`: for a broker that demands keys, the paths of one's own
    `.key_secret` file and of the broker's `.key` file (`imagegen keygen`).
    `tracer_provider`: an OpenTelemetry one, for a span for each request, which brokers and workers add theirs to.
    Raises `ValueError` for an endpoint or a key file that can't be one.
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
        endpoints = [broker] if isinstance(broker, str) else list(broker)
        for endpoint in endpoints:
            parse_endpoint(endpoint)
        core = ClientCore(endpoints, connect_timeout=connect_timeout, retry_overloaded=retry_overloaded)
        self._transport = Transport(core, read_dial_keys(key, broker_key))
        self._traces = None if tracer_provider is None else Traces(tracer_provider)
        # Whoever forgets to close a client, or just ends the program, leaves nothing behind either.
        self._closer = weakref.finalize(self, self._transport.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: unfinished requests end in `ClientClosedError`, the broker gives them up. Safe to repeat."""
        self._closer.detach()
        self._transport.close()

    def submit(
        self, prompt: str, *, progress: bool = False, preview: bool = False, **options: Unpack[RequestOptions]
    ) -> Job:
        """Send a request off and return at once; see `RequestOptions` for what can be said.

        `progress` asks for signs of progress (`Job.progress`), `preview` for signs with a small picture of what
        there is so far (`Progress.preview`; not every model can make one). Raises `InvalidRequestError` naming
        field, value and range, and `ClientClosedError`; everything else comes from `Job.result`.
        """
        key = secrets.token_bytes(ID_BYTES)
        signs = {"progress": progress, "preview": preview}
        submit, seed, frames = build(prompt, options, request_id=key, seed=random_seed(), **signs)
        job = Job(key, seed, transport=self._transport, owner=self, progress=progress or preview)
        if self._traces is not None:
            submit, span = self._traces.begin(submit)
            end_with(job.future, span)
        self._transport.ask(SubmitAsked(submit, frames), job)
        return job

    def generate(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        preview: bool = False,
        **options: Unpack[RequestOptions],
    ) -> GenerationResult:
        """Make images of `prompt` and wait for them; see `RequestOptions` for what can be said.

        `on_progress` is called, in this thread, with each sign of progress, which `preview` asks to have small
        pictures. Whatever ends the waiting (an
        exception of `on_progress`, Ctrl-C) cancels the request. Raises `ImagegenError`s.
        """
        follow = on_progress is not None
        job = self.submit(prompt, progress=follow, preview=follow and preview, **options)
        try:
            if on_progress is not None:
                for sign in job.progress():
                    on_progress(sign)
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
        """Yield the result of each prompt, in order, with at most `window` requests on their way.

        A prompt may also be a mapping with `prompt` and options of its own, which win over the `common` ones.
        `prompts` is read as far ahead as the window, no further. The first error is raised in its
        place; then, or when the iterator is closed, what is on its way is cancelled.
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
        """Return the broker's statistics, as its HTTP `/stats` has them in JSON.

        A field is an attribute, `stats.num_gpus`, or an item, `stats["num_gpus"]`. Raises
        `BrokerUnreachableError` if the broker does not answer within `timeout` seconds.
        """
        return self.request_stats(timeout).result()

    def models(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Return the models that the fleet serves, the default first, what each takes, and its workers.

        `takes` is None where no worker has told yet. Raises as `stats` does.
        """
        return served(self.stats(timeout))

    def request_stats(self, timeout: float = 10.0) -> Future[Statistics]:
        """Ask for the statistics and return at once; the future raises as `stats` does."""
        question = _Question()
        self._transport.ask(StatsAsked(secrets.token_bytes(ID_BYTES), timeout), question)
        return question.future


class _Question:
    """Waits for statistics."""

    def __init__(self) -> None:
        self.future: Future[Statistics] = Future()
        self.future.set_running_or_notify_cancel()

    def finish(self, outcome: Answer | ImagegenError) -> None:
        if isinstance(outcome, ImagegenError):
            self.future.set_exception(outcome)
            return
        try:
            self.future.set_result(from_msgpack(outcome.payload[0]))
        except ProtocolError as error:
            self.future.set_exception(error)

    def report(self, progress: messages.Progress, payload: Payload) -> None:
        raise AssertionError("statistics make no progress")
