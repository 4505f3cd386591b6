"""Measured costs and loaded LoRAs in the form and size that reports to brokers carry."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

import msgspec

from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import MAX_COST_MODELS, MAX_DURATION_SECONDS, MAX_LOADED_LORAS, MAX_LORAS

CHANGE = 0.05
"""Relative change of a cost from which it is reported again."""
MAX_COSTS_BYTES = 8 * 1024
MAX_LORAS_BYTES = 4 * 1024
"""Maximum sizes in a report, so that its header also has room for ids and names of models."""
_COST_MODEL_BYTES = 200
"""Maximum size of a cost model as msgpack."""


class CostReports:
    """The latest measured costs by model."""

    def __init__(self) -> None:
        self._costs: OrderedDict[str, CostModel] = OrderedDict()
        """By model; the one measured most recently is last."""
        self._load_seconds: dict[str, float] = {}

    def set_load_seconds(self, model: str, seconds: float) -> None:
        """Store how long a model took to load."""
        self._load_seconds[model] = min(seconds, MAX_DURATION_SECONDS)
        if (known := self._costs.get(model)) is not None:
            self.update(model, known)

    def update(self, model: str, costs: CostModel) -> None:
        """Store the measured costs of a model."""
        load_seconds = self._load_seconds.get(model)
        self._costs[model] = msgspec.structs.replace(costs, load_seconds=load_seconds)
        self._costs.move_to_end(model)

    def all(self) -> dict[str, CostModel]:
        """Return the costs of the models that were measured most recently, as many as fit into a report."""
        recent = islice(reversed(self._costs), MAX_COST_MODELS)
        names = _within(recent, MAX_COSTS_BYTES, _COST_MODEL_BYTES)
        return {name: self._costs[name] for name in names}

    def changed(self, reported: Mapping[str, CostModel]) -> dict[str, CostModel]:
        """Return the costs that differ from those reported by more than `CHANGE`."""
        return {name: costs for name, costs in self.all().items() if differs(costs, reported.get(name))}


def differs(costs: CostModel, reported: CostModel | None) -> bool:
    """Return whether a value differs from the reported one by more than `CHANGE`; for the error, absolutely."""
    if reported is None:
        return True
    for name in CostModel.__struct_fields__:
        now, before = getattr(costs, name), getattr(reported, name)
        if name == "samples" or now == before:
            continue
        if now is None or before is None:
            return True
        if abs(now - before) > CHANGE * (1.0 if name == "error" else before):
            return True
    return False


class LoadedLoras:
    """The LoRAs that are loaded: of each model those used most recently, which is how backends keep them."""

    def __init__(self) -> None:
        self._by_model: dict[str, OrderedDict[str, None]] = {}

    def use(self, model: str, names: Iterable[str]) -> None:
        """Add the LoRAs of a request that starts; the backend unloads the least recently used ones for them."""
        loaded = self._by_model.setdefault(model, OrderedDict())
        for name in names:
            loaded[name] = None
            loaded.move_to_end(name)
        while len(loaded) > MAX_LORAS:
            loaded.popitem(last=False)

    def discard(self, model: str, names: Iterable[str]) -> None:
        """Remove LoRAs that could not be loaded."""
        for name in names:
            self._by_model.get(model, OrderedDict()).pop(name, None)

    def keep(self, models: Collection[str]) -> None:
        """Remove the LoRAs of models other than these, which are loaded."""
        self._by_model = {name: loras for name, loras in self._by_model.items() if name in models}

    def names(self) -> list[str]:
        """Return the names, as many as fit into a report."""
        names = dict.fromkeys(name for loras in self._by_model.values() for name in reversed(loras))
        return _within(islice(names, MAX_LOADED_LORAS), MAX_LORAS_BYTES, 3)


def _within(names: Iterable[str], max_bytes: int, overhead: int) -> list[str]:
    """Return the first names whose sizes as msgpack, each with `overhead` bytes, stay within `max_bytes`."""
    found = []
    for name in names:
        max_bytes -= len(name.encode()) + overhead
        if max_bytes < 0:
            break
        found.append(name)
    return found
