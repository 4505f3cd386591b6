"""The batch dimensions of a model's arguments, observed in calls with different numbers of rows.

Sizes of one call prove little: with as many layers as rows, embeddings of shape (layers, rows, tokens, channels)
look like a batch of layers, and a pair of rotary tables looks like a list with one tensor for each of two rows. A
dimension is the batch dimension only if its size was the number of rows in every call.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

Path = tuple[Any, ...]
"""The keys to an argument."""

_Argument = tuple[Path, int]
"""An argument and its dimensions; 0 for a list of tensors."""
_LENGTH = 0
"""Stands for the length of a list among the candidate dimensions."""


class BatchDimensions:
    """The batch dimensions of one model's arguments, as far as its calls have shown them."""

    def __init__(self) -> None:
        self._candidates: dict[_Argument, frozenset[int]] = {}
        self._row_counts: dict[_Argument, set[int]] = {}

    def copy(self) -> "BatchDimensions":
        """Return a copy, which later observations don't change."""
        copied = BatchDimensions()
        copied._candidates = dict(self._candidates)
        copied._row_counts = {argument: set(counts) for argument, counts in self._row_counts.items()}
        return copied

    @property
    def settled(self) -> bool:
        """Whether calls with two row counts were observed and no argument is ambiguous."""
        return bool(self._candidates) and all(
            len(self._row_counts[argument]) > 1 and len(candidates) <= 1
            for argument, candidates in self._candidates.items()
        )

    def observe(self, arguments: Mapping[str, Any], rows: int) -> None:
        """Record the sizes of a call's arguments."""
        for argument, sizes in _sizes(arguments, ()):
            matching = frozenset(dim for dim, size in enumerate(sizes) if size == rows)
            if not matching and rows > 1 and 1 in sizes:
                continue  # one value for all rows
            known = self._candidates.get(argument)
            self._candidates[argument] = matching if known is None else known & matching
            self._row_counts.setdefault(argument, set()).add(rows)

    def of_tensor(self, path: Path, tensor: torch.Tensor, rows: int) -> frozenset[int]:
        """Return the dimensions of a tensor that may be its batch dimension and have the size `rows` now."""
        present = frozenset(dim for dim, size in enumerate(tensor.shape) if size == rows)
        return present & self._candidates.get((path, tensor.ndim), present)

    def may_be_list(self, path: Path) -> bool:
        """Return whether a list of tensors had one tensor for each row in every observed call."""
        return _LENGTH in self._candidates.get((path, 0), frozenset({_LENGTH}))

    def is_certain(self, path: Path, ndim: int) -> bool:
        """Return whether this argument was observed in calls with different row counts."""
        return len(self._row_counts.get((path, ndim), ())) > 1


def _sizes(value: Any, path: Path) -> Iterator[tuple[_Argument, Sequence[int]]]:
    """Yield the arguments in a value, with the sizes that may be the number of rows."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 1:
            yield (path, value.ndim), tuple(value.shape)
        return
    if isinstance(value, list | tuple) and value and all(isinstance(item, torch.Tensor) for item in value):
        yield (path, 0), (len(value),)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _sizes(item, (*path, key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _sizes(item, (*path, at))
