"""Many requests on their way at a time, their answers as they come."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Self

import click

from imagegen_cli.prompts import Order
from imagegen_client.job import Job
from imagegen_client.progress import Progress
from imagegen_client.result import GenerationResult
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError, ClientClosedError, ImagegenError, UnauthorizedError

_ENDS_ALL = (BrokerUnreachableError, UnauthorizedError, ClientClosedError)
"""Errors that are about the connection: every other request would end in the same one."""


class Watcher:
    """Is told how it goes, and prints lines; this one shows nothing else."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, order: Order) -> None:
        """Take in a request that is on its way."""

    def sign(self, order: Order, sign: Progress) -> None:
        """Take in a sign of progress."""

    def end(self, order: Order, *, good: bool) -> None:
        """Take in the end of a request."""

    def say(self, line: str, *, err: bool = False) -> None:
        """Print a line, whatever else is shown."""
        click.echo(line, err=err)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: with a result or with an error."""

    order: Order
    request_id: str
    """32 hexadecimal digits, as the broker and the worker log it."""
    result: GenerationResult | None = None
    error: ImagegenError | None = None


def draw(
    client: Client,
    orders: Sequence[Order],
    watcher: Watcher,
    *,
    jobs: int,
    progress: bool = False,
    keep_preview: Callable[[Progress], object] | None = None,
) -> Iterator[Outcome]:
    """Yield how each request ended, as the answers come, with at most `jobs` on their way.

    `progress` asks for the signs that the watcher is told of, `keep_preview` for such with small pictures.
    Whatever ends the iteration (Ctrl-C too) cancels what is on its way. Raises `BrokerUnreachableError`,
    `UnauthorizedError` and `ClientClosedError`, which are about all of them.
    """
    news: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting = iter(orders)
    running: dict[int, tuple[Order, Job]] = {}
    signs = progress or keep_preview is not None
    try:
        while True:
            for order in islice(waiting, jobs - len(running)):
                job = client.submit(
                    order.prompt, progress=signs, preview=keep_preview is not None, **order.options
                )
                running[order.index] = order, job
                watcher.begin(order)
                _call_on_news(job, order.index, news.put, signs=signs)
            if not running:
                return
            index = news.get()
            if index not in running:
                continue
            order, job = running[index]
            for sign in _taken(job) if signs else ():
                watcher.sign(order, sign)
                if keep_preview is not None:
                    keep_preview(sign)
            if job.done():
                del running[index]
                yield _outcome(order, job)
    finally:
        for _, job in running.values():
            job.cancel()


def _call_on_news(job: Job, index: int, put: Callable[[int], object], *, signs: bool) -> None:
    if signs:
        job.set_progress_callback(lambda: put(index))
        # For what came before it was asked for.
        put(index)
    job.add_done_callback(lambda _: put(index))


def _taken(job: Job) -> Iterator[Progress]:
    signs = job.progress_queue()
    while not signs.empty():
        if (sign := signs.get()) is not None:
            yield sign


def _outcome(order: Order, job: Job) -> Outcome:
    error = job.exception()
    if isinstance(error, _ENDS_ALL):
        raise error
    result = None if error is not None else job.result()
    return Outcome(order, job.request_id, result, error)
