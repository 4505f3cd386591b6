"""The capabilities of each model, merged from the reports of its workers."""

import functools
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar, get_type_hints

import msgspec

from imagegen_broker.core.records import Worker
from imagegen_protocol.capabilities import Merge, ModelCapabilities
from imagegen_protocol.limits import MAX_BODY_BYTES, MAX_CHOICES

_MAX_BYTES = MAX_BODY_BYTES
"""Maximum size of all capabilities as msgpack; each STATS response contains them."""


class FleetCapabilities:
    """Capabilities by model, cached until a worker registers, leaves, or changes its capabilities."""

    def __init__(self) -> None:
        self._merged: dict[str, ModelCapabilities] | None = None

    def changed(self) -> None:
        """Invalidate the cache: a worker registered, left, or changed its capabilities."""
        self._merged = None

    def by_model(self, workers: Iterable[Worker]) -> dict[str, ModelCapabilities]:
        """Return the reported capabilities by model. The caller must not modify the dictionary."""
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

    Any of the workers may receive a request; a worker rejects values outside its own bounds.
    """
    return _merge_structs(several)


S = TypeVar("S", bound=msgspec.Struct)


def _merge_structs(several: Sequence[S]) -> S:
    first = several[0]
    if all(each == first for each in several):
        return first
    rules = merge_rules(type(first))
    return type(first)(**{name: _merge(rule, [getattr(each, name) for each in several]) for name, rule in rules})


@functools.cache
def merge_rules(struct: type[msgspec.Struct]) -> list[tuple[str, Merge]]:
    """Return the rule that each field of a struct is annotated with."""
    hints = get_type_hints(struct, include_extras=True)
    return [
        (name, next(item for item in hints[name].__metadata__ if isinstance(item, Merge)))
        for name in struct.__struct_fields__
    ]


def _merge(rule: Merge, values: Sequence[Any]) -> Any:
    """Merge the values of several workers into one; see `Merge`."""
    known = [value for value in values if value is not None]
    match rule:
        case Merge.FIRST:
            return values[0]
        case Merge.FIRST_SET:
            return next(iter(known), None)
        case Merge.LOWEST:
            return min(values) if len(known) == len(values) else None
        case Merge.HIGHEST:
            return max(values) if len(known) == len(values) else None
        case Merge.ANY:
            return any(values)
        case Merge.UNION:
            items = dict.fromkeys(item for value in known for item in value)
            return list(islice(items, MAX_CHOICES)) if known else None
        case Merge.EACH:
            keys = dict.fromkeys(key for value in values for key in value)
            return {key: _merge_entries([value[key] for value in values if key in value]) for key in keys}


def _merge_entries(values: Sequence[Any]) -> Any:
    if isinstance(values[0], msgspec.Struct):
        return _merge_structs(values)
    return _merge(Merge.FIRST_SET, values)
