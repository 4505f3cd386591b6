"""Why requests of a model do not share forwards, found by a trial: for the log at the start and for statistics."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagegen_worker.backends import Row
from imagegen_worker.engines.continuous.calls import Task
from imagegen_worker.engines.continuous.limits import RowCosts
from imagegen_worker.engines.continuous.scheduler import ForwardDone, SchedulerEvent

_SHARED = 0.8
"""Share of the possible images per forward from which on requests count as sharing."""


class MostRows(RowCosts):
    """Runs as many rows together as possible, even where fewer were measured to be as fast."""

    def choose(self, key: Hashable, sizes: Sequence[int], *, gain: float | None = None) -> int:
        """Return the largest size."""
        return sizes[-1]


@dataclass(slots=True)
class DenoiserForwards:
    """The denoiser's forwards of requests that ran at the same time."""

    _forwards: int = 0
    _images: Counter[Task] = field(default_factory=Counter)
    _stages: dict[str, Any] = field(default_factory=dict)
    _fallbacks: Counter[str] = field(default_factory=Counter)

    def observe(self, event: SchedulerEvent) -> None:
        """Count a forward."""
        if not isinstance(event, ForwardDone) or not event.stage.is_denoiser:
            return
        self._forwards += 1
        self._images.update(event.tasks)
        self._stages[event.stage.name] = event.stage
        if event.fallback:
            self._fallbacks[f"{event.stage.name}: {event.fallback}"] += 1

    @property
    def are_shared(self) -> bool:
        """Whether requests shared most forwards that they could share; true without a denoiser."""
        if not self._forwards:
            return True
        possible = self._images.total() / max(self._images.values())
        shared = self._images.total() / self._forwards
        return shared >= 1 + _SHARED * (possible - 1)

    def reason(self) -> str:
        """Return why they were not shared."""
        if any(stage.exclusive for stage in self._stages.values()):
            return "calls change the model or its state, so one request runs at a time"
        if self._fallbacks:
            return self._fallbacks.most_common(1)[0][0]
        names = {name for stage in self._stages.values() for name in stage.differing_arguments}
        return f"calls differ in {', '.join(sorted(names))}" if names else "calls differ"


def why_unshared(
    run: Callable[[Sequence[Row]], DenoiserForwards], unlike: Sequence[Row], alike: Sequence[Row]
) -> str:
    """Return why requests of a model do not share all forwards; "" if they do.

    `unlike`: requests with prompts of other lengths; `alike`: with equal prompts.
    """
    forwards = run(unlike)
    if forwards.are_shared:
        return ""
    same = run(alike)
    if same.are_shared:
        return f"only requests with prompts of equal length share a forward: {forwards.reason()}"
    return f"requests share no forward: {same.reason()}"
