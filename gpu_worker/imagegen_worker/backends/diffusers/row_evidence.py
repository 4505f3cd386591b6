"""Evidence that a model reads an argument row by row: calls that differ in it can share a forward only then.

A batch dimension is no such evidence: FLUX.2 is given position ids for each row and reads those of row 0. An
argument is therefore in one of three states:

- unknown: calls may share a forward as long as their values are equal. The first forward whose calls differ in the
  argument is compared with a forward for each call, and decides;
- per row: the values of one call were seen to have no influence on the rows of another;
- by content: the values of one call reached the rows of another, or the forward could not show that they do not.
  From then on the content of the argument is part of what calls must have in common.

The content of an argument that is not per row is read from the device once for each tensor, not at every step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.diffusers import joining
from imagegen_worker.backends.diffusers.joining import Leaf

MAX_INFLUENCE = 0.25
"""Largest share of another row's effect that may be found in an output whose rows are independent."""

_digests: Any = WeakTensorKeyDictionary()
"""Content of row tensors by tensor and version."""

Forward = Callable[[Mapping[str, Any]], Any]
"""Runs the model on arguments by name."""


@dataclass(slots=True)
class RowEvidence:
    """What has been observed of the arguments of one model."""

    per_row: set[Leaf] = field(default_factory=set)
    by_content: set[Leaf] = field(default_factory=set)

    def contents(self, layout: joining.Layout, arguments: Mapping[str, Any]) -> tuple[tuple[Leaf, bytes], ...]:
        """Return the content of the arguments that calls must have in common."""
        if not self.by_content:
            return ()
        leaves = [leaf for leaf in joining.row_leaves(layout) if leaf in self.by_content]
        return tuple((leaf, row_content(_get(arguments, leaf))) for leaf in leaves)

    def unproven(self, leaves: Iterable[Leaf], calls: Sequence[Mapping[str, Any]]) -> list[Leaf]:
        """Return the arguments in which these calls differ although the model may not read them row by row."""
        doubtful = [leaf for leaf in leaves if leaf not in self.per_row]
        return [leaf for leaf in doubtful if len({row_content(_get(call, leaf)) for call in calls}) > 1]

    def observe(self, leaves: Sequence[Leaf], joined: "JoinedForward") -> dict[Leaf, float | None]:
        """Return how much of the effect of another call's value is in the joined output, for each argument.

        A call is run again with the first row of the argument, and one with the last row: calls that have other
        values than these. 0 is none of the effect, 1 all of it; None: no effect, or it can't be tried. Costs two
        forwards for each argument, and two more where calls are padded.
        """
        seen: dict[Leaf, float | None] = {}
        for leaf in leaves:
            contents = [row_content(_get(call, leaf)) for call in joined.calls]
            last = len(contents) - 1
            order = range(last, -1, -1)
            unlike_first = next(index for index in order if contents[index] != contents[0])
            unlike_last = next(index for index in reversed(order) if contents[index] != contents[last])
            shares = [joined.share(leaf, unlike_first, 0), joined.share(leaf, unlike_last, sum(joined.rows) - 1)]
            known = [share for share in shares if share is not None]
            mixed = any(share > MAX_INFLUENCE for share in known)
            seen[leaf] = max(known) if mixed or len(known) == len(shares) else None
        return seen

    def record(self, seen: Mapping[Leaf, float | None]) -> None:
        """Keep what `observe` found."""
        for leaf, share in seen.items():
            independent = share is not None and share <= MAX_INFLUENCE
            (self.per_row if independent else self.by_content).add(leaf)


@dataclass(slots=True)
class JoinedForward:
    """A forward for several calls: their arguments and rows, the joined arguments, and each call's output.

    `apart` are the calls' outputs from forwards of their own, as far as known.
    """

    layout: joining.Layout
    calls: Sequence[Mapping[str, Any]]
    rows: Sequence[int]
    joined: Mapping[str, Any]
    outputs: Sequence[Any]
    apart: dict[int, Any]
    forward: Forward

    def share(self, leaf: Leaf, index: int, row: int) -> float | None:
        """Return how much of the effect is in a call's output that another row's value of an argument has on it.

        0 is none, 1 is all of it; None if there is no effect, or if the value does not go with the others.
        """
        begin = sum(self.rows[:index])
        end = begin + self.rows[index]
        own = self.layout.narrow(self.joined, begin, end)
        if index not in self.apart:
            self.apart[index] = self.forward(own)
        value = _repeated(_get(self.layout.narrow(self.joined, row, row + 1), leaf), end - begin)
        try:
            moved = self.forward(_replaced(own, leaf.path, value))
        except (DeviceLostError, DeviceMemoryError):
            raise
        except Exception:  # noqa: BLE001 - models check their arguments in all sorts of ways
            return None
        effect = _flat_difference(moved, self.apart[index])
        error = _flat_difference(self.outputs[index], self.apart[index])
        if effect is None or error is None or effect.shape != error.shape:
            return None
        size = float(effect.square().sum())
        # Rounding errors have no common direction: their share is near 0 even if they are larger than the effect.
        return abs(float((error * effect).sum())) / size if size > 0 else None


def _repeated(row: Any, rows: int) -> Any:
    return row * rows if isinstance(row, list) else row.expand(rows, *row.shape[1:])


def _flat_difference(one: Any, other: Any) -> torch.Tensor | None:
    ones, others = _floats(one), _floats(other)
    if len(ones) != len(others) or any(a.shape != b.shape for a, b in zip(ones, others, strict=True)) or not ones:
        return None
    parts = [(a.double() - b.double()).nan_to_num().reshape(-1) for a, b in zip(ones, others, strict=True)]
    return torch.cat(parts)


def _floats(output: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    joining.map_tensors(output, keep)
    return found


def _get(arguments: Any, leaf: Leaf) -> Any:
    for key in leaf.path:
        arguments = arguments[key]
    return arguments


def _replaced(arguments: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the arguments with another value in one place."""
    if not path:
        return value
    if isinstance(arguments, Mapping):
        return {**arguments, path[0]: _replaced(arguments[path[0]], path[1:], value)}
    items = list(arguments)
    items[path[0]] = _replaced(items[path[0]], path[1:], value)
    return tuple(items) if isinstance(arguments, tuple) else items


def row_content(value: Any) -> bytes:
    """Return a digest of an argument's rows; one row that is repeated counts once."""
    if isinstance(value, torch.Tensor):
        return _tensor_content(value)
    contents = list(dict.fromkeys(joining.digest(tensor) for tensor in value))
    return b"".join(contents)


def _tensor_content(tensor: torch.Tensor) -> bytes:
    if tensor.is_inference():  # has no version
        return _read(tensor)
    version, known = _digests.get(tensor, (None, b""))
    if version == tensor._version:
        return bytes(known)
    fresh = _read(tensor)
    _digests[tensor] = (tensor._version, fresh)
    return fresh


def _read(tensor: torch.Tensor) -> bytes:
    host = tensor.detach().cpu()
    if host.ndim <= 1:  # numbers: schedulers give them in any type, once or once for each row
        host = host.reshape(-1).double()
    return joining.content(host[:1] if bool((host == host[:1]).all()) else host)
