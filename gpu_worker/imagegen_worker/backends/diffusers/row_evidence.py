"""Evidence that a model reads an argument row by row: calls that differ in the argument can share only then.

A batch dimension is no such evidence: FLUX.2 receives position ids for each row and reads those of row 0. An
argument is therefore in one of three states:

- unknown: calls may share a forward as long as their values are equal. The first forward whose calls differ in the
  argument is compared with a forward for each call, and decides;
- per row: the values of one call had no influence on the rows of another;
- by content: the values of one call reached the rows of another, or the model rejects them together with others.
  From then on the content of the argument is part of the key of a call. The observation may have been disturbed,
  so it expires after 64 calls, twice as many each time, and the argument is unknown again.

An effect at the size of rounding errors proves nothing: the latents of two requests with one prompt and one seed,
for example, differ by rounding only. The argument then stays unknown, the calls run apart, and later forwards
decide.

The content of an argument that is not per row is read from the device once for each tensor, not at every step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.diffusers.digests import row_digest
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.layouts import Layout, RowArgument, row_arguments
from imagegen_worker.backends.diffusers.outputs import map_tensors, split
from imagegen_worker.engines.continuous.calls import UNEQUAL
from imagegen_worker.engines.continuous.unshareable import UnshareableKeys

MAX_INFLUENCE = 0.25
"""Largest share of the effect of another row's value in an output whose rows count as independent."""

UNCLEAR = nan
"""The influence if the effect can't be distinguished from rounding."""
MAX_ROUNDING = 8.0
"""Rounding errors of an output, at most, as a multiple of its norm and the machine epsilon of its type."""
MAX_UNCLEAR = 8
"""Observations without a result after which an argument counts as read by content."""
MAX_WAIT = 1024
"""Maximum number of forwards for which an observation is postponed."""

ForwardByName = Callable[[Mapping[str, Any]], Any]
"""Runs the model with arguments by name."""


@dataclass(slots=True)
class RowEvidence:
    """The state of each argument of one model; arguments in neither collection are unknown."""

    per_row: set[RowArgument] = field(default_factory=set)
    by_content: UnshareableKeys = field(default_factory=UnshareableKeys)
    _unclear: dict[RowArgument, int] = field(default_factory=dict)
    """Observations without a result so far."""
    _postponed: dict[RowArgument, int] = field(default_factory=dict)
    """Forwards of differing calls that run apart before the next observation."""
    _waits: dict[RowArgument, int] = field(default_factory=dict)
    """Number of forwards for which an observation is postponed next; doubled each time."""

    def contents(self, layout: Layout, arguments: Mapping[str, Any]) -> tuple[tuple[RowArgument, bytes], ...]:
        """Return the digests of the arguments whose content must be equal in calls that share."""
        if next(iter(self.by_content), None) is None:
            return ()
        fixed = [argument for argument in row_arguments(layout) if self.by_content.count(argument) is not None]
        return tuple((argument, _digest(arguments, argument)) for argument in fixed)

    def unproven(self, arguments: Iterable[RowArgument], calls: Sequence[Mapping[str, Any]]) -> list[RowArgument]:
        """Return the arguments in which these calls differ although the model may not read them row by row."""
        doubtful = [argument for argument in arguments if argument not in self.per_row]
        return [argument for argument in doubtful if len({_digest(call, argument) for call in calls}) > 1]

    def proves(self, arguments: Iterable[RowArgument]) -> bool:
        """Return whether the model is known to read all of these arguments row by row."""
        return self.per_row.issuperset(arguments)

    def postpones(self, arguments: Iterable[RowArgument]) -> bool:
        """Return whether calls that differ in these arguments run apart: a recent observation was unclear."""
        waiting = [argument for argument in arguments if self._postponed.get(argument, 0) > 0]
        for argument in waiting:
            self._postponed[argument] -= 1
        return bool(waiting)

    def postpone(self, arguments: Iterable[RowArgument]) -> None:
        """Postpone the next observation of these arguments; until then, calls that differ in them run apart."""
        for argument in arguments:
            wait = min(2 * self._waits.get(argument, 1), MAX_WAIT)
            self._waits[argument] = self._postponed[argument] = wait

    def observe(
        self, arguments: Sequence[RowArgument], forward: "ObservedForward"
    ) -> dict[RowArgument, float | None]:
        """Return for each argument how much of the effect of another call's value is in the shared output.

        0 is none of the effect, 1 all of it; `UNCLEAR`: the effect can't be distinguished from rounding; None: it
        can't be measured. One call is run again with the first row of the argument, and one with the last row;
        both have other values than these. Costs two forwards for each argument, and two more if calls are padded.
        """
        pairs = {argument: _unlike_pairs(forward, argument) for argument in arguments}
        seen = {
            argument: _worst([forward.influence(argument, *pair) for pair in pairs[argument]])
            for argument in arguments
        }
        suspects = [argument for argument, share in seen.items() if _is_mixed(share)]
        if len(suspects) > 1:
            # The shared output contains the effects of all differing arguments, so an argument that is read across
            # rows makes the others look as if they were, too.
            isolated = {
                argument: _worst([forward.own_influence(argument, *pair) for pair in pairs[argument]])
                for argument in suspects
            }
            if any(_is_mixed(share) for share in isolated.values()):
                seen |= isolated
        return seen

    def record(self, seen: Mapping[RowArgument, float | None]) -> list[RowArgument]:
        """Record the result of `observe`; return the arguments that must be equal from now on."""
        must_be_equal = []
        for argument, share in seen.items():
            if share is not None and isnan(share):
                count = self._unclear[argument] = self._unclear.get(argument, 0) + 1
                self.postpone([argument])
                if count < MAX_UNCLEAR:
                    continue
            self._postponed.pop(argument, None)
            if share is not None and share <= MAX_INFLUENCE:
                self.per_row.add(argument)
            else:
                self.by_content.add(argument, UNEQUAL)
                must_be_equal.append(argument)
        return must_be_equal


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
    listed: bool
    alone: dict[int, Any]
    forward: ForwardByName

    def influence(self, argument: RowArgument, index: int, row: int) -> float | None:
        """Return how much of the effect of another row's value of an argument is in the output of call `index`.

        0 is none, 1 all of it. `UNCLEAR`: the effect can't be distinguished from rounding. None: the model rejects
        the value together with the others, or its outputs can't be compared.
        """
        found = self._moved(argument, index, row)
        if found is None:
            return None
        return _share(self.outputs[index], self.alone[index], found[2])

    def own_influence(self, argument: RowArgument, index: int, row: int) -> float | None:
        """Return the influence of this argument alone; see `influence`.

        The call shares a forward with a copy of itself that differs in this argument only. Models may read the
        first row, the last one, or all, so both halves of the output are compared.
        """
        found = self._moved(argument, index, row)
        if found is None:
            return None
        own, other, moved = found
        rows = [self.rows[index]] * 2
        try:
            with translated_errors():
                output = self.forward(self.layout.join([own, other], rows))
        except (DeviceLostError, DeviceMemoryError):
            raise
        except Exception:  # noqa: BLE001 - models check their arguments in different ways
            return None
        first, second = split(output, rows, listed=self.listed)
        return _worst([_share(first, self.alone[index], moved), _share(second, moved, self.alone[index])])

    def _moved(self, argument: RowArgument, index: int, row: int) -> tuple[Any, Any, Any] | None:
        """Return a call's arguments, the same with the value of another row, and the output for the latter.

        None: the model rejects the value together with the call's other arguments.
        """
        begin = sum(self.rows[:index])
        end = begin + self.rows[index]
        own = self.layout.narrow(self.joined, begin, end)
        if index not in self.alone:
            self.alone[index] = self.forward(own)
        value = _repeated(_get(self.layout.narrow(self.joined, row, row + 1), argument), end - begin, argument.dim)
        other = _replaced(own, argument.path, value)
        try:
            return own, other, self.forward(other)
        except (DeviceLostError, DeviceMemoryError):
            raise
        except Exception:  # noqa: BLE001 - models check their arguments in different ways
            return None


def _unlike_pairs(forward: ObservedForward, argument: RowArgument) -> list[tuple[int, int]]:
    """Return (call, row) pairs: a call that differs from the first row, and one that differs from the last."""
    contents = [_digest(call, argument) for call in forward.calls]
    last = len(contents) - 1
    order = range(last, -1, -1)
    unlike_first = next(index for index in order if contents[index] != contents[0])
    unlike_last = next(index for index in reversed(order) if contents[index] != contents[last])
    return [(unlike_first, 0), (unlike_last, sum(forward.rows) - 1)]


def _share(output: Any, alone: Any, moved: Any) -> float | None:
    """Return how much of the effect, from `alone` to `moved`, is in the difference of `output` from `alone`."""
    effect = _difference(moved, alone)
    error = _difference(output, alone)
    if effect is None or error is None or effect.shape != error.shape:
        return None
    size = float(effect.norm())
    if size == 0:
        return UNCLEAR
    # Rounding errors have no common direction, so their projection on a larger effect is near 0. Those of the
    # call alone are part of both differences, though, and are all that a tiny effect consists of.
    share = abs(float((error * effect).sum())) / size**2
    if share > MAX_INFLUENCE:
        return UNCLEAR if float(error.norm()) <= _rounding(alone) else share
    return UNCLEAR if size <= float(error.norm()) else share


def _is_mixed(share: float | None) -> bool:
    return share is not None and share > MAX_INFLUENCE


def _worst(shares: Sequence[float | None]) -> float | None:
    """Combine several influences into one: the largest if any is too large, None if any is unknown."""
    mixed = [share for share in shares if share is not None and _is_mixed(share)]
    if mixed:
        return max(mixed)
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    return UNCLEAR if any(isnan(share) for share in known) else max(known)


def _rounding(output: Any) -> float:
    """Return an upper bound of the norm of the rounding errors in an output."""
    squares = [
        (torch.finfo(tensor.dtype).eps * float(tensor.double().nan_to_num().norm())) ** 2
        for tensor in _float_tensors(output)
    ]
    return MAX_ROUNDING * float(sum(squares) ** 0.5)


def _repeated(row: Any, rows: int, dim: int) -> Any:
    if isinstance(row, list):
        return row * rows
    # Contiguous, as joined arguments are: models take views of them.
    return row.expand(*row.shape[:dim], rows, *row.shape[dim + 1 :]).contiguous()


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


def _digest(arguments: Any, argument: RowArgument) -> bytes:
    return row_digest(_get(arguments, argument), argument.dim)


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
