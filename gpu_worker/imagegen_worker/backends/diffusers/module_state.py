"""Detection of models that keep state from one forward to the next; requests must not mix in such a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DEPTH = 3
"""Levels of nested values that are compared."""
_FORWARDS = 8
"""Maximum number of monitored forwards. The first ones may compile, or fill caches that depend on shapes alone."""
_NOT_STATE = frozenset({"_parameters", "_modules", "_hf_hook", "forward", "training"})


class StateMonitor:
    """Compares the attributes of a module before and after its first forwards.

    `stateless`: a forward has changed none of them. `judged`: no more forwards need to be monitored.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._monitored = 0
        self.stateless = False
        self.judged = bool(getattr(module, "is_cache_enabled", False))  # diffusers' step caches keep state

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compare the module's attributes before and after the forward in the `with` block."""
        before = _fingerprint(self._module)
        yield
        self._monitored += 1
        self.stateless = _fingerprint(self._module) == before
        self.judged = self.stateless or self._monitored == _FORWARDS


def _fingerprint(module: torch.nn.Module) -> list[Any]:
    return [
        (name, _identity(value, _DEPTH))
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _NOT_STATE
    ]


def _identity(value: Any, depth: int) -> Any:
    """Return an object that differs if the value has changed within `depth` nested levels."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return id(value), -1 if value.is_inference() else value._version
    if depth == 0 or isinstance(value, torch.nn.Module | type):
        return id(value)
    if isinstance(value, dict):
        return [
            (key if isinstance(key, str | int) else id(key), _identity(item, depth - 1))
            for key, item in value.items()
        ]
    if isinstance(value, list | tuple | set | frozenset):
        return [_identity(item, depth - 1) for item in value]
    if hasattr(value, "__dict__"):
        return id(value), [(name, _identity(item, depth - 1)) for name, item in vars(value).items()]
    return id(value)
