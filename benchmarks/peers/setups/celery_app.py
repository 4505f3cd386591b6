"""Celery's application: with batching (celery-batches) a task for many requests, without it one for each.

Late acknowledgement, and tasks of lost worker processes back into the queue, as Celery's guide has it for tasks
that may be run twice.
"""

import os
from typing import Any

from celery import Celery
from celery_batches import Batches

from benchmarks.peers.setups.device import Work, execute

URL = os.environ["REDIS_URL"]

work = Work.of_environment()
app = Celery("peers", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # celery-batches wants at least a batch; without it the guide says 1 for long tasks, more for short ones.
    worker_prefetch_multiplier=work.max_batch_size if work.batches else 4 if work.costs_nothing else 1,
    task_serializer="msgpack",
    result_serializer="msgpack",
    accept_content=["msgpack"],
    broker_connection_retry_on_startup=True,
)


if work.batches:

    @app.task(base=Batches, flush_every=work.max_batch_size, flush_interval=work.batch_wait, name="draw")
    def draw(requests: list[Any]) -> None:
        """Make a batch; celery-batches leaves it to the task to hand results over."""
        results = execute([request.args[0] for request in requests])
        for request, result in zip(requests, results, strict=True):
            app.backend.mark_as_done(request.id, result, request=request)

else:

    @app.task(name="draw")
    def draw(number: int) -> bytes:
        """Make one image."""
        return execute([number])[0]
