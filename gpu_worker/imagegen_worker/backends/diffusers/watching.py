"""Whether a model keeps state from one call to the next; requests must not mix in one that does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DEPTH = 3
_FORWARDS = 8
"""Forwards that are watched at most. The first ones may compile, or fill caches that depend on shapes alone."""
_NOT_STATE = frozenset({"_parameters", "_modules", "_hf_hook", "forward", "training"})


class StateWatch:
    """Compares all that hangs on a module before and after its first forwards.

    `stateless` once a forward has left everything as it was; before that, and for ever if none does, it is not.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._watched = 0
        self.stateless = False
        self.judged = False
        if getattr(module, "is_cache_enabled", False):  # diffusers' own step caches
            self.judged = True

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch one forward."""
        before = _fingerprint(self._module)
        yield
        self._watched += 1
        self.stateless = _fingerprint(self._module) == before
        self.judged = self.stateless or self._watched == _FORWARDS


def _fingerprint(module: torch.nn.Module) -> list[Any]:
    seen: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in _NOT_STATE:
                seen.append((name, _look(value, _DEPTH)))
    return seen


def _look(value: Any, depth: int) -> Any:
    """Return something that changes when the value does, as far as `depth` levels show it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return id(value), -1 if value.is_inference() else value._version
    if depth == 0 or isinstance(value, torch.nn.Module | type):
        return id(value)
    if isinstance(value, dict):
        return [
            (key if isinstance(key, str | int) else id(key), _look(item, depth - 1)) for key, item in value.items()
        ]
    if isinstance(value, list | tuple | set | frozenset):
        return [_look(item, depth - 1) for item in value]
    if hasattr(value, "__dict__"):
        return id(value), [(name, _look(item, depth - 1)) for name, item in vars(value).items()]
    return id(value)
