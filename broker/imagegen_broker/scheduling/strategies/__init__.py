"""Dispatch strategies, one module each. A module in this folder is registered without edits elsewhere."""

from importlib import import_module
from pkgutil import iter_modules

from imagegen_broker.scheduling.strategies.base import STRATEGIES, Strategy

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STRATEGIES", "Strategy"]
