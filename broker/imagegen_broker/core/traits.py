"""What each model takes, put together from what its workers tell."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from imagegen_broker.core.records import Worker
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_CHOICES
from imagegen_protocol.traits import ModelTraits

_MAX_BYTES = MAX_BODY_BYTES
"""Of all that is told, as msgpack: it goes with each answer to STATS."""


class Traits:
    """Merges when a worker has come, gone or learnt something, not each time that somebody looks."""

    def __init__(self) -> None:
        self._told: dict[str, ModelTraits] | None = None

    def changed(self) -> None:
        """Learn that the workers, or what they tell, are others than before."""
        self._told = None

    def told(self, workers: Iterable[Worker]) -> dict[str, ModelTraits]:
        """Return the traits of each model that a worker has described. The caller must not change the dict."""
        if self._told is None:
            self._told = _tell(sorted(workers, key=lambda worker: worker.name))
        return self._told


def _tell(workers: Sequence[Worker]) -> dict[str, ModelTraits]:
    by_model: dict[str, list[ModelTraits]] = {}
    for worker in workers:
        for name, traits in worker.traits.items():
            if name in worker.ready.models:
                by_model.setdefault(name, []).append(traits)
    told: dict[str, ModelTraits] = {}
    left = _MAX_BYTES
    for name in sorted(by_model):
        merged = merge(by_model[name])
        left -= len(name) + len(msgspec.msgpack.encode(merged))
        if left < 0:
            break
        told[name] = merged
    return told


def merge(several: Sequence[ModelTraits]) -> ModelTraits:
    """Return what one model takes by the word of one or more workers: the first's defaults, the widest bounds.

    A request may come to any of them: what is beyond one of them, it refuses.
    """
    first = several[0]
    if all(traits == first for traits in several):
        return first
    tasks: dict[Any, float | None] = {}
    for traits in several:
        for task, strength in traits.tasks.items():
            tasks[task] = strength if tasks.get(task) is None else tasks[task]
    loras = [traits.loras for traits in several if traits.loras is not None]
    scales = (traits.guidance_scale for traits in several if traits.guidance_scale is not None)
    return ModelTraits(
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=next(scales, None),
        size_multiple=min(traits.size_multiple for traits in several),
        max_side=max(traits.max_side for traits in several),
        negative_prompt=any(traits.negative_prompt for traits in several),
        tasks=tasks,
        schedulers=_union(traits.schedulers for traits in several),
        loras=_union(loras) if loras else None,
    )


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(islice(dict.fromkeys(item for each in lists for item in each), MAX_CHOICES))
