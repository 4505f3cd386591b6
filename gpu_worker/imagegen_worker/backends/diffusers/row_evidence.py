"""Evidence that a model reads an argument row by row: calls that differ in the argument can share only then.

A batch dimension is no such evidence: FLUX.2 receives position ids for each row and reads those of row 0. An
argument is therefore in one of three states:

- unknown: calls may share a forward as long as their values are equal. The first forward whose calls differ in the
  argument is compared with a forward for each call, and decides;
- per row: the values of one call had no influence on the rows of another;
- by content: the values of one call reached the rows of another, or the forward could not show that they do not.
  From then on the content of the argument is part of the key of a call.

The content of an argument that is not per row is read from the device once for each tensor, not at every step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.diffusers.digests import row_digest
from imagegen_worker.backends.diffusers.layouts import Layout, RowArgument, row_arguments
from imagegen_worker.backends.diffusers.outputs import map_tensors

MAX_INFLUENCE = 0.25
"""Largest share of the effect of another row's value in an output whose rows count as independent."""

ForwardByName = Callable[[Mapping[str, Any]], Any]
"""Runs the model with arguments by name."""


@dataclass(slots=True)
class RowEvidence:
    """The state of each argument of one model; arguments in neither set are unknown."""

    per_row: set[RowArgument] = field(default_factory=set)
    by_content: set[RowArgument] = field(default_factory=set)

    def contents(self, layout: Layout, arguments: Mapping[str, Any]) -> tuple[tuple[RowArgument, bytes], ...]:
        """Return the digests of the arguments whose content must be equal in calls that share."""
        if not self.by_content:
            return ()
        fixed = [argument for argument in row_arguments(layout) if argument in self.by_content]
        return tuple((argument, row_digest(_get(arguments, argument))) for argument in fixed)

    def unproven(self, arguments: Iterable[RowArgument], calls: Sequence[Mapping[str, Any]]) -> list[RowArgument]:
        """Return the arguments in which these calls differ although the model may not read them row by row."""
        doubtful = [argument for argument in arguments if argument not in self.per_row]
        return [argument for argument in doubtful if len({row_digest(_get(call, argument)) for call in calls}) > 1]

    def observe(
        self, arguments: Sequence[RowArgument], forward: "ObservedForward"
    ) -> dict[RowArgument, float | None]:
        """Return for each argument how much of the effect of another call's value is in the shared output.

        0 is none of the effect, 1 all of it; None: no effect, or it can't be measured. A call is run again with
        the first row of the argument, and one with the last row: calls that have other values than these.
        Costs two forwards for each argument, and two more where calls are padded.
        """
        seen: dict[RowArgument, float | None] = {}
        for argument in arguments:
            contents = [row_digest(_get(call, argument)) for call in forward.calls]
            last = len(contents) - 1
            order = range(last, -1, -1)
            unlike_first = next(index for index in order if contents[index] != contents[0])
            unlike_last = next(index for index in reversed(order) if contents[index] != contents[last])
            shares = [
                forward.influence(argument, unlike_first, 0),
                forward.influence(argument, unlike_last, sum(forward.rows) - 1),
            ]
            known = [share for share in shares if share is not None]
            mixed = any(share > MAX_INFLUENCE for share in known)
            seen[argument] = max(known) if mixed or len(known) == len(shares) else None
        return seen

    def record(self, seen: Mapping[RowArgument, float | None]) -> None:
        """Record the result of `observe`."""
        for argument, share in seen.items():
            independent = share is not None and share <= MAX_INFLUENCE
            (self.per_row if independent else self.by_content).add(argument)


@dataclass(slots=True)
class ObservedForward:
    """A shared forward: the arguments and rows of its calls, the joined arguments, and the output of each call.

    `alone`: outputs of the calls from forwards of their own, by the index of the call, as far as known.
    """

    layout: Layout
    calls: Sequence[Mapping[str, Any]]
    rows: Sequence[int]
    joined: Mapping[str, Any]
    outputs: Sequence[Any]
    alone: dict[int, Any]
    forward: ForwardByName

    def influence(self, argument: RowArgument, index: int, row: int) -> float | None:
        """Return how much of the effect of another row's value of an argument is in the output of call `index`.

        0 is none, 1 all of it. None: there is no effect, or the model rejects the value beside the others.
        """
        begin = sum(self.rows[:index])
        end = begin + self.rows[index]
        own = self.layout.narrow(self.joined, begin, end)
        if index not in self.alone:
            self.alone[index] = self.forward(own)
        value = _repeated(_get(self.layout.narrow(self.joined, row, row + 1), argument), end - begin)
        try:
            moved = self.forward(_replaced(own, argument.path, value))
        except (DeviceLostError, DeviceMemoryError):
            raise
        except Exception:  # noqa: BLE001 - models check their arguments in different ways
            return None
        effect = _difference(moved, self.alone[index])
        error = _difference(self.outputs[index], self.alone[index])
        if effect is None or error is None or effect.shape != error.shape:
            return None
        size = float(effect.square().sum())
        # Rounding errors have no common direction: their share is near 0 even if they are larger than the effect.
        return abs(float((error * effect).sum())) / size if size > 0 else None


def _repeated(row: Any, rows: int) -> Any:
    return row * rows if isinstance(row, list) else row.expand(rows, *row.shape[1:])


def _difference(one: Any, other: Any) -> torch.Tensor | None:
    """Return the difference of two outputs as a vector (float64); None if shapes differ or there are no floats."""
    ones, others = _float_tensors(one), _float_tensors(other)
    if len(ones) != len(others) or any(a.shape != b.shape for a, b in zip(ones, others, strict=True)) or not ones:
        return None
    parts = [(a.double() - b.double()).nan_to_num().reshape(-1) for a, b in zip(ones, others, strict=True)]
    return torch.cat(parts)


def _float_tensors(output: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    map_tensors(output, keep)
    return found


def _get(arguments: Any, argument: RowArgument) -> Any:
    for key in argument.path:
        arguments = arguments[key]
    return arguments


def _replaced(arguments: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the arguments with another value at a path."""
    if not path:
        return value
    if isinstance(arguments, Mapping):
        return {**arguments, path[0]: _replaced(arguments[path[0]], path[1:], value)}
    items = list(arguments)
    items[path[0]] = _replaced(items[path[0]], path[1:], value)
    return tuple(items) if isinstance(arguments, tuple) else items
