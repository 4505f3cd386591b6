"""What is asked for, by model: who could make it, how much waits, and how long that will take."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from sys import float_info
from typing import NamedTuple, Self

from imagegen_broker.core.estimates import seconds_per_request
from imagegen_broker.core.ledger import Ledger
from imagegen_protocol.messages import Ready, WorkerStats
from imagegen_protocol.statistics import ModelStatistics

UNMEASURED_SECONDS = 1.0
"""Taken for a request for a model of which no worker has told its speed yet."""
NO_MODEL = "default"
"""Stands for the model of requests that name none, while no worker has told which is the default."""
OTHER_MODELS = "other"
"""Stands for the models beyond the bound."""
_MAX_MODELS = 500


class WorkerView(NamedTuple):
    """What was so of a worker at one time; nothing in it changes any more. Times in seconds."""

    ready: Ready
    stats: WorkerStats
    state: str
    """One of "ready", where it takes work, "draining", "stuck" and "unreachable"."""
    depth: int
    """Requests at the worker."""
    load: int
    """Images of these requests."""
    running_images: int
    """Those of them that are being generated."""
    holding: int
    dispatches: int
    warm: frozenset[str]
    needed: tuple[tuple[str | None, int], ...]
    """Models of what is assigned to it, and how often."""
    seconds_per_image: float | None
    step_age: float | None
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Demand:
    """Who could make what, and what was asked for, at one time."""

    workers: Sequence[WorkerView]
    seen: Mapping[str | None, float | None]
    """As `Placement.seen`."""
    waiting: Mapping[str | None, int]
    """Requests that wait here and may be dispatched, by model: no worker is missing for those of a held client."""

    @classmethod
    def of(cls, ledger: Ledger, workers: Sequence[WorkerView]) -> Self:
        """Copy it; `workers` are the ledger's."""
        return cls(workers, dict(ledger.placement.seen()), ledger.queue.ready_by_model())


class _Supply(NamedTuple):
    """Who can make a model: workers that take work, those of them without any, and device seconds a request."""

    workers: int = 0
    idle: int = 0
    seconds: float | None = None


def demand(at: Demand) -> list[ModelStatistics]:
    """Return one row for each model that is, or lately was, served or waited for; seconds of device time.

    `unfinished` are the requests that wait here or are at workers, `backlog_seconds` the work that they are: each
    counts as an average one, for the broker does not read what it asks for.
    """
    supplies = _supplies(at.workers)
    dispatched: Counter[str | None] = Counter()
    for worker in at.workers:
        dispatched.update(dict(worker.needed))
    waited_for = dict(at.waiting)
    rows: list[ModelStatistics] = []
    for model in islice(dict.fromkeys((*supplies, *at.seen, *dispatched, *waited_for)), _MAX_MODELS):
        supply = supplies.get(model) or _Supply(seconds=at.seen.get(model))
        rows.append(_row(model or NO_MODEL, supply, waited_for.pop(model, 0), dispatched.get(model, 0)))
    if waited_for:
        rows.append(_row(OTHER_MODELS, _Supply(), sum(waited_for.values()), 0))
    return rows


def _row(model: str, supply: _Supply, waiting: int, dispatched: int) -> ModelStatistics:
    unfinished = waiting + dispatched
    seconds = supply.seconds if supply.seconds is not None and isfinite(supply.seconds) else None
    return ModelStatistics(
        model=model,
        workers=supply.workers,
        idle_workers=supply.idle,
        waiting=waiting,
        unfinished=unfinished,
        seconds_per_request=seconds,
        backlog_seconds=min(float_info.max, unfinished * (seconds or UNMEASURED_SECONDS)),
    )


def _supplies(workers: Sequence[WorkerView]) -> dict[str | None, _Supply]:
    """Return who can make each model; workers with the same models are looked at once for all of them."""
    alike: defaultdict[tuple[str, ...], list[WorkerView]] = defaultdict(list)
    for worker in workers:
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


def _supply(workers: list[WorkerView]) -> _Supply:
    ready = [worker for worker in workers if worker.state == "ready"]
    return _Supply(len(ready), sum(not worker.depth for worker in ready), seconds_per_request(workers))
