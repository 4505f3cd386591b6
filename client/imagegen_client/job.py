"""Handle of one submitted request, for the application's threads."""

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from imagegen_client.events import Answer, Payload
from imagegen_client.progress import Progress, make_progress
from imagegen_client.result import GenerationResult
from imagegen_client.transport import Transport
from imagegen_protocol import ImagegenError, messages
from imagegen_protocol.limits import MAX_STEPS

MAX_UNREAD = 32
"""Unread progress events beyond which previews and queue positions are dropped."""
MAX_UNREAD_STEPS = 2 * MAX_STEPS
"""Unread progress events beyond which steps are dropped too: a worker may send any number of them."""

ProgressQueue = queue.SimpleQueue[Progress | None]
"""Progress events, oldest first; None marks the end."""


class Job:
    """A submitted request; thread-safe. Created by `Client.submit`."""

    def __init__(self, key: bytes, seed: int, *, transport: Transport, owner: object, progress: bool) -> None:
        self._key = key
        self._transport = transport
        # Keeps the client alive: a garbage-collected client closes itself.
        self._owner: object | None = owner
        self._started = time.monotonic()
        self._progress: ProgressQueue | None = queue.SimpleQueue() if progress else None
        self._callback: Callable[[], object] | None = None
        self._latest: Progress | None = None
        self.seed = seed
        """Seed of the first image, known at submission."""
        self.future: Future[GenerationResult] = Future()
        """The answer as a `concurrent.futures` future; its own `cancel` has no effect."""
        self.future.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        return f"<Job {self.request_id} seed={self.seed} {'done' if self.done() else 'unfinished'}>"

    @property
    def request_id(self) -> str:
        """Id of the first submission, 32 hexadecimal digits; a retry after `overloaded` has another."""
        return self._key.hex()

    @property
    def latest(self) -> Progress | None:
        """Latest progress event; None before the first.

        Needs `progress=True` at submission. Reading it does not consume events of `progress`.
        """
        return self._latest

    def done(self) -> bool:
        """Return whether the request has ended, with a result or an error."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the result. Raises the request's `ImagegenError`, or `TimeoutError` after `timeout` seconds.

        After a `TimeoutError` the request continues; `cancel` ends it.
        """
        return self.future.result(timeout)

    def exception(self, timeout: float | None = None) -> ImagegenError | None:
        """Wait for the answer and return its error, None for a result; raises `TimeoutError` as `result` does."""
        error = self.future.exception(timeout)
        assert error is None or isinstance(error, ImagegenError), "the core ends requests with its own errors"
        return error

    def cancel(self) -> bool:
        """Cancel the request: `result` then raises `CancelledError`, unless the result arrives first.

        Returns False if the request has already ended.
        """
        if self.done():
            return False
        self._transport.cancel(self._key)
        return True

    def add_done_callback(self, callback: Callable[["Job"], object]) -> None:
        """Call `callback(job)` when the request ends, immediately if it has ended.

        The callback runs on the client's I/O thread and must return quickly, because it delays all other
        answers. Its exceptions are logged.
        """
        self.future.add_done_callback(lambda _: callback(self))

    def progress(self) -> Iterator[Progress]:
        """Yield progress events until the request ends: queue positions, then denoising steps (see `Progress`).

        For one consumer. Raises `ValueError` if the job was not submitted with `progress=True`.
        """
        return self._iterate(self.progress_queue())

    @staticmethod
    def _iterate(events: ProgressQueue) -> Iterator[Progress]:
        while (event := events.get()) is not None:
            yield event
        events.put(None)  # so that a second iteration ends too

    def progress_queue(self) -> ProgressQueue:
        """Return the queue behind `progress`, for a consumer that must not block. Raises `ValueError` likewise."""
        if self._progress is None:
            raise ValueError("progress: expected a job submitted with progress=True")
        return self._progress

    def set_progress_callback(self, callback: Callable[[], object] | None) -> None:
        """Call `callback()` on the I/O thread after each new entry of `progress_queue`; None removes it."""
        self._callback = callback

    # ---- the I/O thread ----------------------------------------------------------------------------------

    def on_complete(self, outcome: Answer | ImagegenError) -> None:
        """Store the result or error; called by the transport."""
        if isinstance(outcome, Answer):
            assert isinstance(outcome.message, messages.Result), "the core answers requests with results"
            seconds = time.monotonic() - self._started
            self.future.set_result(GenerationResult(outcome.message, outcome.payload, seconds))
        else:
            self.future.set_exception(outcome)
        self._owner = None
        self._put(None)
        self._callback = None

    def on_progress(self, progress: messages.Progress, payload: Payload) -> None:
        """Add a progress event; called by the transport."""
        unread = 0 if self._progress is None else self._progress.qsize()
        full = unread >= MAX_UNREAD
        self._latest = event = make_progress(progress, () if full else payload)
        if unread < (MAX_UNREAD if event.state == "queued" else MAX_UNREAD_STEPS):
            self._put(event)

    def on_waiting(self, reason: str) -> None:
        """Add an event that no broker serves the client; called by the transport."""
        self._latest = event = Progress(0, 0, state="waiting", reason=reason)
        if self._progress is not None and self._progress.qsize() < MAX_UNREAD:
            self._put(event)

    def _put(self, event: Progress | None) -> None:
        if self._progress is not None:
            self._progress.put(event)
        if (callback := self._callback) is not None:
            callback()
