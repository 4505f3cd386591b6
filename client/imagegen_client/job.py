"""One submitted request, seen from the application's threads."""

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from imagegen_client.events import Answer, Payload
from imagegen_client.progress import Progress, make_progress
from imagegen_client.result import GenerationResult
from imagegen_client.transport import Transport
from imagegen_protocol import ImagegenError, messages

MAX_BEHIND = 32
"""Signs that wait for their reader, from which on new ones come without previews, and those of places not at all:
small, whoever never reads."""

Signs = queue.SimpleQueue[Progress | None]


class Job:
    """A request on its way; thread-safe. Made by `Client.submit`."""

    def __init__(self, key: bytes, seed: int, *, transport: Transport, owner: object, progress: bool) -> None:
        self._key = key
        self._transport = transport
        # A client that nobody holds closes itself: not while its jobs are held.
        self._owner: object | None = owner
        self._started = time.monotonic()
        self._signs: Signs | None = queue.SimpleQueue() if progress else None
        self._wake: Callable[[], object] | None = None
        self._latest: Progress | None = None
        self.seed = seed
        """The seed of the first image, known before it is made."""
        self.future: Future[GenerationResult] = Future()
        """The same answer for code that speaks `concurrent.futures`; its own `cancel` has no effect."""
        self.future.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        return f"<Job {self.request_id} seed={self.seed} {'done' if self.done() else 'unfinished'}>"

    @property
    def request_id(self) -> str:
        """The id of the first submission, 32 hexadecimal digits (a retry after `overloaded` has another)."""
        return self._key.hex()

    @property
    def latest(self) -> Progress | None:
        """The last sign of progress, which says where the request waits or how far it is; None before the first.

        It needs `progress=True`, takes nothing away from `progress`, and may be asked for at any time.
        """
        return self._latest

    def done(self) -> bool:
        """Return whether the answer, good or bad, is there."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the answer. Raises the `ImagegenError` it is, or `TimeoutError` after `timeout` seconds.

        After a `TimeoutError` the request goes on; `cancel` gives it up.
        """
        return self.future.result(timeout)

    def exception(self, timeout: float | None = None) -> ImagegenError | None:
        """Wait for the answer and return the error that it is, None for a result; `TimeoutError` as `result`."""
        error = self.future.exception(timeout)
        assert error is None or isinstance(error, ImagegenError), "the core ends requests with its own errors"
        return error

    def cancel(self) -> bool:
        """Give the request up; `result` then raises `CancelledError`, unless the result was quicker.

        Returns False when it has ended already.
        """
        if self.done():
            return False
        self._transport.cancel(self._key)
        return True

    def add_done_callback(self, callback: Callable[["Job"], object]) -> None:
        """Call `callback(job)` once the answer is there, at once if it is.

        It runs on the client's I/O thread and must be quick: it holds up all other answers. What it raises
        is logged.
        """
        self.future.add_done_callback(lambda _: callback(self))

    def progress(self) -> Iterator[Progress]:
        """Yield each sign of progress until the answer is there: places in the queue, then steps (see `Progress`).

        One consumer only. Raises `ValueError` if the job was not submitted with `progress=True`.
        """
        return self._follow(self.signs())

    @staticmethod
    def _follow(signs: Signs) -> Iterator[Progress]:
        while (sign := signs.get()) is not None:
            yield sign
        signs.put(None)  # for whoever asks again

    def signs(self) -> Signs:
        """Return the queue behind `progress`, for a consumer that must not block; it ends in None.

        Raises `ValueError` as `progress` does.
        """
        if self._signs is None:
            raise ValueError("submit the request with progress=True to follow it")
        return self._signs

    def wake_with(self, wake: Callable[[], object] | None) -> None:
        """Call `wake()` after each entry into `signs`, on the I/O thread; None: call nothing any more."""
        self._wake = wake

    # ---- the I/O thread ----------------------------------------------------------------------------------

    def finish(self, outcome: Answer | ImagegenError) -> None:
        """Take the answer (called by the transport)."""
        if isinstance(outcome, Answer):
            assert isinstance(outcome.message, messages.Result), "the core answers requests with results"
            seconds = time.monotonic() - self._started
            self.future.set_result(GenerationResult(outcome.message, outcome.payload, seconds))
        else:
            self.future.set_exception(outcome)
        self._owner = None
        self._note(None)
        self._wake = None

    def report(self, progress: messages.Progress, payload: Payload) -> None:
        """Take a sign of progress (called by the transport)."""
        behind = self._signs is not None and self._signs.qsize() >= MAX_BEHIND
        self._latest = sign = make_progress(progress, () if behind else payload)
        if not (behind and sign.state == "queued"):
            self._note(sign)

    def _note(self, sign: Progress | None) -> None:
        if self._signs is not None:
            self._signs.put(sign)
        if (wake := self._wake) is not None:
            wake()
