"""The demand for each model: the workers that serve it, the requests that wait, and the backlog in seconds."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from sys import float_info
from typing import NamedTuple, Self

from imagegen_broker.scheduling.estimates import seconds_per_request
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.costs import CostModel
from imagegen_protocol.messages import Ready, WorkerStats
from imagegen_protocol.statistics import ModelStatistics

UNMEASURED_SECONDS = 1.0
"""Assumed duration of a request for a model of which no worker has reported a speed."""
NO_MODEL = "default"
"""Name in the statistics for requests without a model, while no default model is known."""
OTHER_MODELS = "other"
"""Name in the statistics for all models beyond the maximum."""
_MAX_MODELS = 500


class WorkerView(NamedTuple):
    """The state of a worker at one time. Immutable. Times in seconds."""

    ready: Ready
    stats: WorkerStats
    state: str
    """One of "ready", "draining", "stuck" and "unreachable"; only a ready worker accepts work."""
    depth: int
    """Requests at the worker."""
    load: int
    """Images of these requests."""
    running_images: int
    """Images that are being generated."""
    answers: int
    """Unacknowledged answers that the worker holds."""
    dispatches: int
    warm: frozenset[str]
    assigned_models: tuple[tuple[str | None, int], ...]
    """Number of assigned requests by model."""
    seconds_per_image: float | None
    costs: Mapping[str, CostModel]
    loaded_loras: frozenset[str]
    step_age: float | None
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Demand:
    """Immutable copy of the workers and the waiting requests, from which any thread can compute the demand."""

    workers: Sequence[WorkerView]
    seen: Mapping[str | None, float | None]
    """As `WorkerPool.seen`."""
    waiting: Mapping[str | None, int]
    """Waiting requests by model, without those of paused clients: more workers would not start them sooner."""

    @classmethod
    def of(cls, scheduler: Scheduler, workers: Sequence[WorkerView]) -> Self:
        """Copy the state of a scheduler; `workers` are the views of all its workers."""
        return cls(workers, dict(scheduler.pool.seen()), scheduler.queue.ready_by_model())


class _Supply(NamedTuple):
    """Number of workers that accept work for a model, idle ones among them, and device seconds per request."""

    workers: int = 0
    idle: int = 0
    seconds: float | None = None


def demand(at: Demand) -> list[ModelStatistics]:
    """Return one row for each model that was ever served or that requests wait for.

    `unfinished` counts the requests that wait here or are at workers; `backlog_seconds` is their device time. Each
    counts as an average request, because the broker does not read the body.
    """
    supplies = _supplies(at.workers)
    dispatched: Counter[str | None] = Counter()
    for worker in at.workers:
        dispatched.update(dict(worker.assigned_models))
    waiting = dict(at.waiting)
    rows: list[ModelStatistics] = []
    for model in islice(dict.fromkeys((*supplies, *at.seen, *dispatched, *waiting)), _MAX_MODELS):
        supply = supplies.get(model) or _Supply(seconds=at.seen.get(model))
        rows.append(_row(model or NO_MODEL, supply, waiting.pop(model, 0), dispatched.get(model, 0)))
    if waiting:
        rows.append(_row(OTHER_MODELS, _Supply(), sum(waiting.values()), 0))
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
    """Return the supply of each model; workers that serve the same models are examined once for all of them."""
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
