"""Concurrent requests, with outcomes in the order of completion."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

from imagegen_cli.prompts import PreparedRequest
from imagegen_cli.terminal import echo
from imagegen_client.job import Job
from imagegen_client.progress import Progress
from imagegen_client.result import GenerationResult
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError, ClientClosedError, ImagegenError, UnauthorizedError

if TYPE_CHECKING:
    from PIL import Image

_CONNECTION_ERRORS = (BrokerUnreachableError, UnauthorizedError, ClientClosedError)
"""Errors of the connection: every other request would fail in the same way."""


class ProgressView:
    """Display of progress and output lines; this base class prints lines only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, request: PreparedRequest) -> None:
        """Show a request that was submitted."""

    def progressed(self, request: PreparedRequest, event: Progress) -> None:
        """Show the progress of a request."""

    def ended(self, request: PreparedRequest, *, succeeded: bool) -> None:
        """Show that a request has ended."""

    def print_line(self, line: str, *, err: bool = False) -> None:
        """Print a line to stdout, or stderr if `err`."""
        echo(line, err=err)

    def print_image(self, image: "Image.Image") -> None:
        """Print an image to stdout, which is a terminal."""
        from imagegen_cli.inline_images import print_image

        print_image(image)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a request: a result or an error."""

    request: PreparedRequest
    request_id: str
    """32 hexadecimal digits, as in the logs of broker and worker."""
    result: GenerationResult | None = None
    error: ImagegenError | None = None


def run_requests(
    client: Client,
    requests: Sequence[PreparedRequest],
    view: ProgressView,
    *,
    jobs: int,
    progress: bool = False,
    on_preview: Callable[[Progress], object] | None = None,
) -> Iterator[Outcome]:
    """Yield the outcome of each request in the order of completion, with at most `jobs` unfinished requests.

    `progress` requests progress events for the view; `on_preview` is called with events that carry previews.
    Ending the iteration early (Ctrl-C included) cancels unfinished requests. Raises `BrokerUnreachableError`,
    `UnauthorizedError` and `ClientClosedError`, which concern all requests.
    """
    updates: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting = iter(requests)
    running: dict[int, tuple[PreparedRequest, Job]] = {}
    with_progress = progress or on_preview is not None
    try:
        while True:
            for request in islice(waiting, jobs - len(running)):
                job = client.submit(
                    request.prompt, progress=with_progress, preview=on_preview is not None, **request.options
                )
                running[request.index] = request, job
                view.started(request)
                _notify(job, request.index, updates.put, with_progress=with_progress)
            if not running:
                return
            index = updates.get()
            if index not in running:
                continue
            request, job = running[index]
            for event in _read_all(job) if with_progress else ():
                view.progressed(request, event)
                if on_preview is not None:
                    on_preview(event)
            if job.done():
                del running[index]
                yield _outcome(request, job)
    finally:
        for _, job in running.values():
            job.cancel()


def _notify(job: Job, index: int, put: Callable[[int], object], *, with_progress: bool) -> None:
    if with_progress:
        job.set_progress_callback(lambda: put(index))
        # For events that arrived before the callback was set.
        put(index)
    job.add_done_callback(lambda _: put(index))


def _read_all(job: Job) -> Iterator[Progress]:
    events = job.progress_queue()
    while not events.empty():
        if (event := events.get()) is not None:
            yield event


def _outcome(request: PreparedRequest, job: Job) -> Outcome:
    error = job.exception()
    if isinstance(error, _CONNECTION_ERRORS):
        raise error
    result = None if error is not None else job.result()
    return Outcome(request, job.request_id, result, error)
