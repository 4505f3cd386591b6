"""Measured costs of models, and predictions for whole requests that are compared with what they took."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import MAX_COUNT, MAX_DURATION_SECONDS
from imagegen_worker.core.cost_fit import FORWARD_SHARES, CostFit, RecentMedian
from imagegen_worker.core.events import CostsMeasured
from imagegen_worker.core.model import ResolvedRequest

COMPARED_REQUESTS = 20
"""Number of the latest predictions whose mean error is reported."""
_CALL_SHARES = (0.05, 0.45, 0.45, 0.05)
"""Parts of a pipeline call: fixed, fixed per step, per step and megapixel, per megapixel."""


class _ModelCosts:
    """Measurements of one model."""

    def __init__(self) -> None:
        self.forwards = CostFit(FORWARD_SHARES)
        self.calls = CostFit(_CALL_SHARES)
        self.forwards_per_step = RecentMedian()
        self.request = RecentMedian()
        self.decode = RecentMedian()
        self.errors: deque[float] = deque(maxlen=COMPARED_REQUESTS)

    def costs(self) -> CostModel | None:
        """Return the cost model; None before the first measurement."""
        if (call := self.calls.coefficients()) is not None:
            request, forward, megapixel, decode = call
        elif (found := self.forwards.coefficients()) is not None:
            # A step may take several forwards, or its forwards several calls of the model.
            forward, megapixel = (self.forwards_per_step.value(1.0) * each for each in found)
            request, decode = self.request.value(0.0), self.decode.value(0.0)
        else:
            return None
        return CostModel(
            forward_seconds=_bounded(forward),
            megapixel_seconds=_bounded(megapixel),
            request_seconds=_bounded(request),
            decode_megapixel_seconds=_bounded(decode),
            error=_bounded(fmean(self.errors)) if self.errors else None,
            samples=min(self.calls.count + self.forwards.count, MAX_COUNT),
        )


@dataclass(slots=True)
class _RunningRequest:
    """A request that runs. A share is its part of the images in a forward."""

    model: str
    megapixels: float
    images: int
    steps: int
    predicted: CostModel | None
    """The cost model when the request started."""
    image_forwards: int = 0
    """Forwards, counted for each image."""
    share: float = 0.0
    """Sum of its shares of forwards."""
    share_megapixels: float = 0.0
    """Sum of its shares of forwards, each times the megapixels of all images in the forward."""
    fixed_share: float = 0.0
    """Its share of the fixed seconds of its calls."""
    outside_seconds: float = 0.0
    """Device seconds of other models than the denoiser and the decoder."""
    seconds: float = 0.0
    """All device seconds, by its shares."""

    def prediction(self) -> float | None:
        """Return the predicted device seconds, given the forwards that the request shared; None if unknown."""
        costs, forwards = self.predicted, self.image_forwards / self.images
        if costs is None or not forwards:
            return None
        each = costs.forward_seconds * self.share + costs.megapixel_seconds * self.share_megapixels
        decode = costs.decode_megapixel_seconds * self.megapixels * self.images
        return costs.request_seconds * self.fixed_share + self.steps * each / forwards + decode


_Parts = list[tuple[_RunningRequest, int]]
"""Requests, each with the number of its images in a forward."""


class CostMeter:
    """Measures what forwards and requests cost, by model. Used by the engines, on the device thread.

    Jobs are identified by their number. `images` maps jobs to the number of their images in a forward; forwards of
    jobs that are not running are ignored.
    """

    def __init__(self) -> None:
        self._models: dict[str, _ModelCosts] = {}
        self._running: dict[int, _RunningRequest] = {}

    def start(self, number: int, request: ResolvedRequest) -> None:
        """Add a job that starts to run; its costs are predicted from the measurements so far."""
        self._running[number] = _RunningRequest(
            model=request.model,
            megapixels=request.megapixels,
            images=len(request.seeds),
            steps=request.executed_steps,
            predicted=self.costs(request.model),
        )

    def costs(self, model: str) -> CostModel | None:
        """Return the cost model of a model; None before the first measurement."""
        found = self._models.get(model)
        return None if found is None else found.costs()

    def add_forward(self, images: Mapping[int, int], seconds: float) -> None:
        """Add a forward of the denoiser."""
        known = self._known(images)
        if not known:
            return
        count, megapixels = sum(images.values()), _megapixels(known, images)
        self._of(known[0][0].model).forwards.observe((1.0, megapixels), seconds)
        for request, part in known:
            share = part / count
            request.fixed_share = 1.0
            request.image_forwards += part
            request.share += share
            request.share_megapixels += share * megapixels
            request.seconds += share * seconds

    def add_decoding(self, images: Mapping[int, int], seconds: float) -> None:
        """Add a forward of the decoder of latents."""
        known = self._known(images)
        if not known:
            return
        self._of(known[0][0].model).decode.observe(seconds / _megapixels(known, images))
        for request, part in known:
            request.seconds += seconds * part / sum(images.values())

    def add_other(self, images: Mapping[int, int], seconds: float) -> None:
        """Add a forward of another model, such as a text encoder."""
        for request, part in self._known(images):
            share = seconds * part / sum(images.values())
            request.outside_seconds += share
            request.seconds += share

    def add_call(self, images: Mapping[int, int], seconds: float) -> None:
        """Add a whole pipeline call, whose images have the same size and number of steps."""
        known = self._known(images)
        if not known:
            return
        first, count = known[0][0], sum(images.values())
        megapixels, steps = first.megapixels * count, first.steps
        features = (1.0, float(steps), steps * megapixels, megapixels)
        self._of(first.model).calls.observe(features, seconds)
        for request, part in known:
            request.fixed_share += part / count
            request.image_forwards += part * steps
            request.share += steps * part / count
            request.share_megapixels += steps * part / count * megapixels
            request.seconds += seconds * part / count

    def finish(self, number: int) -> CostsMeasured | None:
        """Remove a job that has all of its images; return what it cost, or None if nothing was measured."""
        request = self._running.pop(number, None)
        if request is None or not request.image_forwards:
            return None
        measured = self._of(request.model)
        measured.forwards_per_step.observe(request.image_forwards / request.images / request.steps)
        measured.request.observe(request.outside_seconds)
        predicted = request.prediction()
        if predicted is not None and request.seconds > 0:
            measured.errors.append(abs(predicted - request.seconds) / request.seconds)
        costs = measured.costs()
        return None if costs is None else CostsMeasured(request.model, costs, request.seconds, predicted)

    def discard(self, number: int) -> None:
        """Remove a job that was cancelled or failed, if it runs."""
        self._running.pop(number, None)

    def _known(self, images: Mapping[int, int]) -> _Parts:
        found = ((self._running.get(number), count) for number, count in images.items())
        return [(request, count) for request, count in found if request is not None]

    def _of(self, model: str) -> _ModelCosts:
        return self._models.setdefault(model, _ModelCosts())


def _megapixels(known: _Parts, images: Mapping[int, int]) -> float:
    """Return the megapixels of all images in a forward; those of unknown requests are as large as the others."""
    megapixels = sum(request.megapixels * part for request, part in known)
    return megapixels * sum(images.values()) / sum(part for _, part in known)


def _bounded(value: float) -> float:
    return min(value, MAX_DURATION_SECONDS)
