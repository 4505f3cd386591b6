"""What is asked for, by model: who could make it, how much waits, and how long that will take."""

from collections import Counter
from itertools import islice
from typing import Any

from imagegen_broker.core.ledger import Ledger

UNMEASURED_SECONDS = 1.0
"""Taken for an image of a model of which no worker has told its speed yet."""
NO_MODEL = "default"
"""Stands for the model of requests that name none, while no worker has told which is the default."""
OTHER_MODELS = "other"
"""Stands for the models beyond the bound."""
_MAX_MODELS = 500


def demand(ledger: Ledger) -> list[dict[str, Any]]:
    """Return one row for each model that is, or lately was, served or waited for; seconds of device time.

    `unfinished` are the requests that wait here or are at workers, `backlog_seconds` the work that they are: each
    counts as one image, for the broker does not read how many it asks for.
    """
    placement, queue = ledger.placement, ledger.queue
    dispatched = _dispatched(ledger)
    waited_for = {model: queue.waiting(model) for model in queue.models()}
    served = dict.fromkeys((*placement.models(), *placement.seen()))
    rows: dict[str, dict[str, Any]] = {}
    for model in islice(dict.fromkeys((*served, *dispatched, *waited_for)), _MAX_MODELS):
        rows[model or NO_MODEL] = _row(ledger, model, waited_for.pop(model, 0), dispatched.get(model, 0))
    if waited_for:
        rows[OTHER_MODELS] = _row(ledger, None, sum(waited_for.values()), 0)
    return [{"model": name, **row} for name, row in rows.items()]


def _row(ledger: Ledger, model: str | None, waiting: int, dispatched: int) -> dict[str, Any]:
    serving = ledger.placement.serving(model)
    seconds = None if model is None else ledger.placement.seconds_per_image(model)
    unfinished = waiting + dispatched
    return {
        "workers": len(serving),
        "idle_workers": sum(not worker.depth for worker in serving),
        "waiting": waiting,
        "unfinished": unfinished,
        "seconds_per_image": seconds,
        "backlog_seconds": unfinished * (seconds or UNMEASURED_SECONDS),
    }


def _dispatched(ledger: Ledger) -> Counter[str | None]:
    counts: Counter[str | None] = Counter()
    for worker in ledger.workers.values():
        if len(worker.ready.models) == 1:
            counts[worker.ready.models[0]] += len(worker.assigned)
        else:
            counts.update(assignment.request.model for assignment in worker.assigned.values())
    return counts
