"""What is asked for, by model: who could make it, how much waits, and how long that will take."""

from collections import Counter, defaultdict
from itertools import islice
from typing import Any, NamedTuple

from imagegen_broker.core.estimates import seconds_per_request
from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import Worker

UNMEASURED_SECONDS = 1.0
"""Taken for a request for a model of which no worker has told its speed yet."""
NO_MODEL = "default"
"""Stands for the model of requests that name none, while no worker has told which is the default."""
OTHER_MODELS = "other"
"""Stands for the models beyond the bound."""
_MAX_MODELS = 500


class _Supply(NamedTuple):
    """Who can make a model: workers that take work, those of them without any, and device seconds a request."""

    workers: int = 0
    idle: int = 0
    seconds: float | None = None


def demand(ledger: Ledger) -> list[dict[str, Any]]:
    """Return one row for each model that is, or lately was, served or waited for; seconds of device time.

    `unfinished` are the requests that wait here or are at workers, `backlog_seconds` the work that they are: each
    counts as an average one, for the broker does not read what it asks for.
    """
    supplies = _supplies(ledger)
    seen = ledger.placement.seen()
    dispatched: Counter[str | None] = Counter()
    for worker in ledger.workers.values():
        dispatched.update(worker.needed)
    waited_for = {model: ledger.queue.waiting(model) for model in ledger.queue.models()}
    rows: list[dict[str, Any]] = []
    for model in islice(dict.fromkeys((*supplies, *seen, *dispatched, *waited_for)), _MAX_MODELS):
        supply = supplies.get(model) or _Supply(seconds=seen.get(model))
        rows.append(_row(model or NO_MODEL, supply, waited_for.pop(model, 0), dispatched.get(model, 0)))
    if waited_for:
        rows.append(_row(OTHER_MODELS, _Supply(), sum(waited_for.values()), 0))
    return rows


def _row(model: str, supply: _Supply, waiting: int, dispatched: int) -> dict[str, Any]:
    unfinished = waiting + dispatched
    return {
        "model": model,
        "workers": supply.workers,
        "idle_workers": supply.idle,
        "waiting": waiting,
        "unfinished": unfinished,
        "seconds_per_request": supply.seconds,
        "backlog_seconds": unfinished * (supply.seconds or UNMEASURED_SECONDS),
    }


def _supplies(ledger: Ledger) -> dict[str | None, _Supply]:
    """Return who can make each model; workers with the same models are looked at once for all of them."""
    alike: defaultdict[tuple[str, ...], list[Worker]] = defaultdict(list)
    for worker in ledger.workers.values():
        alike[tuple(worker.ready.models)].append(worker)
    groups: defaultdict[str, tuple[tuple[str, ...], ...]] = defaultdict(tuple)
    for models in alike:
        for model in dict.fromkeys(models):
            groups[model] += (models,)
    known: dict[tuple[tuple[str, ...], ...], _Supply] = {}
    for several in groups.values():
        if several not in known:
            known[several] = _supply([worker for models in several for worker in alike[models]])
    return {model: known[several] for model, several in groups.items()}


def _supply(workers: list[Worker]) -> _Supply:
    ready = [worker for worker in workers if worker.available]
    return _Supply(len(ready), sum(not worker.depth for worker in ready), seconds_per_request(workers))
