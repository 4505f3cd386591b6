"""Predicted device time of requests, from the cost models and the speeds that workers report."""

from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from statistics import median
from typing import NamedTuple

from imagegen_broker.core.records import Worker
from imagegen_broker.scheduling.finish_times import DeviceCost
from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import MAX_SECONDS_PER_IMAGE
from imagegen_protocol.messages import Submit

DEFAULT_LOAD_SECONDS = 10.0
"""Assumed duration of loading a model whose duration is not reported; the order of magnitude is enough."""
DEFAULT_LORA_SECONDS = 1.0
"""Assumed duration of loading a LoRA; workers do not report it."""
DEFAULT_SECONDS = 1.0
"""Assumed duration of an image while no worker has reported a speed."""
_DEFAULT_SIDE = 512
_DEFAULT_STEPS = 20
_SHARED_BATCH = 4
"""Number of images that an average forward is assumed to have."""
_SAMPLED_WORKERS = 32
"""Number of workers whose median is the typical cost of a model."""
_MAX_SLOWNESS = 4.0
_MIN_COMPARED = 3
"""Number of workers with a cost model from which the median is believed more than a single report."""
_MIN_SECONDS = 1e-9
"""Least seconds per forward; a worker may report 0."""
REFERENCE = Submit(request_id=bytes(16))
"""A request of default size and steps, by which workers are compared."""


class Sizes(NamedTuple):
    """The size of a request, with the defaults of its model filled in."""

    megapixels: float
    steps: int


class _Fleet:
    """The available workers of one model: their speeds and their typical cost."""

    __slots__ = ("costs", "least", "raised", "seconds_per_image", "speeds", "total", "typical", "workers")

    def __init__(self) -> None:
        self.workers: dict[bytes, Worker] = {}
        self.speeds: dict[bytes, float] = {}
        """Reference requests per second of the workers that have reported a cost or a speed."""
        self.total = 0.0
        self.costs: dict[bytes, CostModel] = {}
        self.typical: CostModel | None = None
        self.least: CostModel | None = None
        """Lower bound of the costs of all workers."""
        self.raised = 0
        """Number of changes that may have raised the lower bound since it was computed."""
        self.seconds_per_image = DEFAULT_SECONDS

    def update(self, worker: Worker, model: str) -> None:
        """Store the speed of a worker. O(1)."""
        self.remove(worker)
        self.workers[worker.id] = worker
        cost = worker.costs.get(model)
        if cost is not None:
            self.costs[worker.id] = cost
            self.least = _least_cost([cost] if self.least is None else [self.least, cost])
            self.typical = _median_cost(islice(self.costs.values(), _SAMPLED_WORKERS))
            self._set_speed(worker, _shared_seconds(cost, sizes_on(worker, REFERENCE, model), 1))
        elif worker.seconds_per_image:
            self._set_speed(worker, _within(worker.seconds_per_image))
            self.seconds_per_image = 1 / median(islice(self.speeds.values(), _SAMPLED_WORKERS))

    def _set_speed(self, worker: Worker, seconds: float) -> None:
        self.speeds[worker.id] = 1 / seconds
        self.total += 1 / seconds

    def remove(self, worker: Worker) -> None:
        """Forget a worker; the typical cost remains."""
        self.workers.pop(worker.id, None)
        self.raised += self.costs.pop(worker.id, None) is not None
        self.total = max(0.0, self.total - self.speeds.pop(worker.id, 0.0)) if self.speeds else 0.0

    def speed(self, model: str) -> float:
        """Return the speed of all workers in typical ones; one that has reported nothing counts as typical."""
        if not self.workers:
            return 0.0
        seconds = self.seconds_per_image
        if self.typical is not None:
            sizes = sizes_on(next(iter(self.workers.values())), REFERENCE, model)
            seconds = _shared_seconds(self.typical, sizes, 1)
        return self.total * seconds + len(self.workers) - len(self.speeds)

    def seconds(self, submit: Submit, model: str) -> float:
        """Return the device seconds of a request on a typical worker."""
        if self.typical is None:
            return self.seconds_per_image * submit.images
        sizes = sizes_on(next(iter(self.workers.values()), None), submit, model)
        return _shared_seconds(self.typical, sizes, submit.images)

    def credible_share(self, cost: CostModel, sizes: Sizes) -> float:
        """Return the factor that limits a reported cost to `_MAX_SLOWNESS` times the typical one.

        A worker that reports to be slower gets requests now and then, which show whether that is true.
        """
        if self.typical is None or len(self.costs) < _MIN_COMPARED:
            return 1.0
        most = _MAX_SLOWNESS * _shared_seconds(self.typical, sizes, 1)
        return min(1.0, most / _shared_seconds(cost, sizes, 1))

    def least_seconds(self, submit: Submit, model: str) -> float | None:
        """Return less than any worker needs for a request that runs alone; None if a worker's cost is unknown.

        Amortised O(1): the bound is computed anew after as many changes as an eighth of the workers.
        """
        if not self.costs or len(self.costs) < len(self.workers) or self.least is None:
            return None
        if self.raised > len(self.costs) // 8:
            self.least, self.raised = _least_cost(self.costs.values()), 0
        sizes = sizes_on(next(iter(self.workers.values())), submit, model)
        return self.least.alone(sizes.megapixels, sizes.steps, submit.images)


_UNKNOWN = _Fleet()
"""The workers of a model that none serves."""


class CostEstimates:
    """Predicts the device time of requests on a worker, and on an average one."""

    def __init__(self) -> None:
        self._fleets: dict[str, _Fleet] = {}
        self._known: dict[bytes, tuple[object, ...]] = {}
        """What the workers have reported last."""

    def worker_reported(self, worker: Worker) -> None:
        """Update the speed of a worker. O(its models) if it has changed, else O(1)."""
        report = (worker.is_available, worker.seconds_per_image, worker.costs, worker.capabilities)
        if self._known.get(worker.id) == report:
            return
        self._known[worker.id] = report
        for model in worker.ready.models:
            fleet = self._fleets.setdefault(model, _Fleet())
            if worker.is_available:
                fleet.update(worker, model)
            else:
                fleet.remove(worker)

    def worker_removed(self, worker: Worker, *, still_served: Callable[[str], bool]) -> None:
        """Forget a worker, and the models that no other worker serves."""
        self._known.pop(worker.id, None)
        for model in worker.ready.models:
            if still_served(model):
                self._fleets[model].remove(worker)
            else:
                self._fleets.pop(model, None)

    def device_cost(self, worker: Worker, submit: Submit, model: str) -> DeviceCost:
        """Return the cost of a request on a worker; its own batches it with equal requests only."""
        sizes = sizes_on(worker, submit, model)
        cost = worker.costs.get(model)
        if cost is None and worker.seconds_per_image is None:
            cost = self._fleet(model).typical
        group = groups_of(submit, model)[worker.ready.batching != "continuous"]
        if cost is None:
            return DeviceCost(group, submit.images, 1.0, 0.0, self.seconds_per_image(worker, model))
        scale = self._fleet(model).credible_share(cost, sizes)
        per_image = _within(scale * cost.megapixel_seconds * sizes.megapixels)
        fixed = min(scale * cost.forward_seconds, MAX_SECONDS_PER_IMAGE)
        outside = cost.request_seconds + cost.decode_megapixel_seconds * sizes.megapixels * submit.images
        forwards = sizes.steps + outside / (fixed + per_image * submit.images)
        return DeviceCost(group, submit.images, forwards, fixed, per_image)

    def loading_seconds(self, worker: Worker, submit: Submit, model: str) -> float:
        """Return the seconds in which a worker loads what a request needs and is not loaded, nor soon will be."""
        seconds = 0.0 if worker.is_warm(model) else self.load_seconds(worker, model)
        missing = set(submit.shape.loras) - worker.loaded_loras if submit.shape.loras else ()
        return seconds + DEFAULT_LORA_SECONDS * len(missing)

    def load_seconds(self, worker: Worker, model: str) -> float:
        """Return the seconds in which a worker loads a model that is not loaded."""
        cost = worker.costs.get(model)
        seconds = None if cost is None else cost.load_seconds
        return DEFAULT_LOAD_SECONDS if seconds is None else seconds

    def seconds_per_image(self, worker: Worker, model: str) -> float:
        """Return a worker's seconds per image, or those of a typical worker if it has not reported any."""
        return _within(worker.seconds_per_image or self._fleet(model).seconds_per_image)

    def seconds(self, submit: Submit, model: str | None) -> float:
        """Return the device seconds of a request on a typical worker, where it shares its forwards with others."""
        return self._fleet(model).seconds(submit, model or "")

    def speed(self, model: str | None) -> float:
        """Return the speed of all workers that accept work for a model, in typical workers; 0 without any."""
        return self._fleet(model).speed(model or "")

    def least_seconds(self, submit: Submit, model: str | None) -> float | None:
        """Return the seconds that the fastest worker needs at least for a request; None if unknown."""
        return self._fleet(model).least_seconds(submit, model or "")

    def is_measured(self, model: str | None) -> bool:
        """Return whether a worker that accepts work for a model has reported a cost or a speed."""
        return bool(self._fleet(model).speeds)

    def _fleet(self, model: str | None) -> _Fleet:
        return self._fleets.get(model or "", _UNKNOWN)


def groups_of(submit: Submit, model: str) -> tuple[Hashable, Hashable]:
    """Return the groups of a request on workers with continuous batching, and on others.

    Requests of equal groups share forwards. Without continuous batching they must also have equal steps.
    """
    shape = submit.shape
    group = (model, shape.width, shape.height, shape.task, tuple(shape.loras))
    return group, (*group, shape.num_inference_steps)


def sizes_on(worker: Worker | None, submit: Submit, model: str) -> Sizes:
    """Return the size of a request; the defaults are those that the worker has reported for the model."""
    shape = submit.shape
    known = None if worker is None else worker.capabilities.get(model)
    width = shape.width or (known.width if known else _DEFAULT_SIDE)
    height = shape.height or (known.height if known else _DEFAULT_SIDE)
    steps = shape.num_inference_steps or (known.num_inference_steps if known else _DEFAULT_STEPS)
    return Sizes(width * height / 1e6, steps)


def _shared_seconds(cost: CostModel, sizes: Sizes, images: int) -> float:
    """Return the device seconds of a request whose forwards have `_SHARED_BATCH` images."""
    per_image = cost.forward_seconds / _SHARED_BATCH + cost.megapixel_seconds * sizes.megapixels
    outside = cost.request_seconds + cost.decode_megapixel_seconds * sizes.megapixels * images
    return _within(outside + sizes.steps * images * per_image)


_COSTS = ("forward_seconds", "megapixel_seconds", "request_seconds", "decode_megapixel_seconds")


def _median_cost(costs: Iterable[CostModel]) -> CostModel:
    """Return the median of each number, which a minority of wrong reports can't move far."""
    known = list(costs)
    return CostModel(**{name: median(getattr(cost, name) for cost in known) for name in _COSTS})


def _least_cost(costs: Iterable[CostModel]) -> CostModel:
    """Return the least of each number."""
    known = list(costs)
    return CostModel(**{name: min(getattr(cost, name) for cost in known) for name in _COSTS})


def _within(seconds: float) -> float:
    """Return seconds within the limits by which scheduling can divide."""
    return min(max(seconds, _MIN_SECONDS), MAX_SECONDS_PER_IMAGE)
