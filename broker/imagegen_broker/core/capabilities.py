"""The capabilities of each model, merged from the reports of its workers."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from imagegen_broker.core.records import Worker
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_CHOICES

_MAX_BYTES = MAX_BODY_BYTES
"""Maximum size of all capabilities as msgpack; each STATS response contains them."""


class FleetCapabilities:
    """Capabilities by model, cached until a worker registers, leaves, or reports others."""

    def __init__(self) -> None:
        self._merged: dict[str, ModelCapabilities] | None = None

    def changed(self) -> None:
        """Invalidate the cache: a worker registered, left, or changed its capabilities."""
        self._merged = None

    def by_model(self, workers: Iterable[Worker]) -> dict[str, ModelCapabilities]:
        """Return the capabilities of each described model, in a dictionary that the caller must not modify."""
        if self._merged is None:
            self._merged = _merge_all(sorted(workers, key=lambda worker: worker.name))
        return self._merged


def _merge_all(workers: Sequence[Worker]) -> dict[str, ModelCapabilities]:
    by_model: dict[str, list[ModelCapabilities]] = {}
    for worker in workers:
        for name, capabilities in worker.capabilities.items():
            if name in worker.ready.models:
                by_model.setdefault(name, []).append(capabilities)
    found: dict[str, ModelCapabilities] = {}
    left = _MAX_BYTES
    for name in sorted(by_model):
        merged = merge(by_model[name])
        left -= len(name) + len(msgspec.msgpack.encode(merged))
        if left < 0:
            break
        found[name] = merged
    return found


def merge(several: Sequence[ModelCapabilities]) -> ModelCapabilities:
    """Merge the capabilities that workers report for one model: the first worker's defaults, the widest bounds.

    Any of the workers may receive a request; a worker rejects what exceeds its own bounds.
    """
    first = several[0]
    if all(capabilities == first for capabilities in several):
        return first
    tasks: dict[Any, float | None] = {}
    for capabilities in several:
        for task, strength in capabilities.tasks.items():
            tasks[task] = strength if tasks.get(task) is None else tasks[task]
    loras = [capabilities.loras for capabilities in several if capabilities.loras is not None]
    scales = (capabilities.guidance_scale for capabilities in several if capabilities.guidance_scale is not None)
    return ModelCapabilities(
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=next(scales, None),
        size_multiple=min(capabilities.size_multiple for capabilities in several),
        max_side=max(capabilities.max_side for capabilities in several),
        negative_prompt=any(capabilities.negative_prompt for capabilities in several),
        tasks=tasks,
        schedulers=_union(capabilities.schedulers for capabilities in several),
        loras=_union(loras) if loras else None,
    )


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(islice(dict.fromkeys(item for each in lists for item in each), MAX_CHOICES))
