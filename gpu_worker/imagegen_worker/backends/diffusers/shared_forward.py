"""Forwards shared by several calls of a model, and their comparison with forwards of the calls alone.

The first shared forward of each kind of calls is compared, and later ones at growing distances. Calls whose
outputs differ by more than rounding can't share; a wrong guess costs speed, never an image.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from imagegen_worker.backends import DeviceMemoryError
from imagegen_worker.backends.diffusers import outputs
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.implied_masks import unneeded
from imagegen_worker.backends.diffusers.layouts import (
    Description,
    Layout,
    RowArgument,
    count_rows,
    differing_names,
    free_lengths,
    row_arguments,
)
from imagegen_worker.backends.diffusers.row_evidence import MAX_INFLUENCE, ObservedForward, RowEvidence
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.engines.continuous.calls import UNEQUAL, NotShareableError

MAX_KINDS = 4096
"""Maximum number of remembered kinds of calls of a model; the oldest are forgotten, and compared again."""
FIRST_RECHECK = 256
"""Shared forwards of a kind until one is compared again; doubled after each comparison."""
MAX_RECHECK = 16_384
"""Maximum number of shared forwards of a kind between two comparisons."""
_ALONE = "alone"
"""The case of one call padded to a fixed number of rows, which proves nothing about several calls."""

_log = logging.getLogger(__name__)

Forward = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
"""Runs the model with these positional and keyword arguments."""


@dataclass(slots=True, eq=False)
class CallKind:
    """The key of calls that can share a forward. These calls have the same object, so comparing keys is cheap."""

    listed: bool
    layout: Layout
    row_arguments: tuple[RowArgument, ...]
    """The arguments that are joined row by row and may differ between calls of this kind."""
    compared: set[Hashable] = field(default_factory=set)
    """Cases that were compared: whether the calls differed in rows, and how much in lengths; or `_ALONE`."""
    recheck_interval: int = FIRST_RECHECK
    until_recheck: int = FIRST_RECHECK
    """Shared forwards until the next comparison."""

    def is_due(self, case: Hashable) -> bool:
        """Count a shared forward, and return whether it must be compared."""
        self.until_recheck -= 1
        return case not in self.compared or self.until_recheck <= 0

    def postpone(self) -> None:
        """Postpone the next comparison."""
        self.until_recheck = self.recheck_interval

    def passed(self, case: Hashable) -> None:
        """Record that a shared forward was equal to forwards of the calls alone."""
        self.compared.add(case)
        if self.until_recheck <= 0:
            self.recheck_interval = min(2 * self.recheck_interval, MAX_RECHECK)
            self.until_recheck = self.recheck_interval


@dataclass(slots=True)
class ForwardGroup:
    """Calls of one kind that share a forward.

    `arguments`: those of each call by name; `rows`: rows of each call; `alone`: positional and keyword arguments
    with which the model runs each call alone.
    """

    kind: CallKind
    arguments: Sequence[Mapping[str, Any]]
    rows: Sequence[int]
    alone: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]

    def singles(self) -> "list[ForwardGroup]":
        """Return a group for each call."""
        return [
            ForwardGroup(self.kind, [arguments], [rows], [alone])
            for arguments, rows, alone in zip(self.arguments, self.rows, self.alone, strict=True)
        ]


class SharedForwards:
    """Runs the shared forwards of one model. `fixed_rows`: rows to which each forward is padded; None: none.

    `name`: the model's name in error messages.
    """

    def __init__(self, forward: Forward, *, fixed_rows: int | None = None, name: str = "") -> None:
        self._forward = forward
        self._name = name
        self._fixed_rows = fixed_rows
        self._kinds: dict[Hashable, CallKind] = {}
        self._evidence = RowEvidence()
        self._latest: CallKind | None = None
        self.differing: frozenset[str] = frozenset()
        """Names of the arguments in which the two latest calls of other kinds differed."""

    def kind(self, adapters: Hashable, description: Description, arguments: Mapping[str, Any]) -> CallKind:
        """Return the key of calls with these adapters and this description."""
        layout = description.layout
        contents = self._evidence.contents(layout, arguments)
        identity = (adapters, description.listed, layout, contents)
        kind = self._kinds.get(identity)
        if kind is None:
            equal = {argument for argument, _ in contents}
            free = tuple(argument for argument in row_arguments(layout) if argument not in equal)
            kind = self._kinds[identity] = CallKind(description.listed, layout, free)
            if len(self._kinds) > MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        if self._latest is not None and self._latest is not kind:
            by_content = {str(argument.path[0]) for argument, _ in contents}
            self.differing = differing_names(self._latest.layout, layout) or frozenset(by_content)
        self._latest = kind
        return kind

    def run(self, group: ForwardGroup, max_rows: int) -> list[Any]:
        """Run calls in forwards of at most `max_rows` rows; return the output of each.

        Raises `NotShareableError` if the output shows that calls of this kind can't share a forward.
        """
        kind, alone = group.kind, len(group.rows) == 1
        whole = sum(group.rows) <= max_rows  # one forward holds all calls; otherwise its output proves nothing
        padding = _padding(group) if kind.layout.has_free_length else None
        case = _ALONE if alone else (any(n != group.rows[0] for n in group.rows), padding)
        unproven = [] if alone else self._evidence.unproven(kind.row_arguments, group.arguments)
        if unproven and (not whole or self._evidence.postpones(unproven) or self._must_be_equal(unproven)):
            return self._run_each(group, max_rows)
        if not whole and not alone and case not in kind.compared:
            return self._run_each(group, max_rows)
        joined = kind.layout.join(group.arguments, group.rows)
        left_out = dict.fromkeys(unneeded(group.arguments))
        output = self._run_joined(kind, joined, max_rows, left_out)
        parts = outputs.split(output, group.rows, listed=kind.listed)
        del output
        if not whole or (alone and self._fixed_rows is None):
            return parts
        if not kind.is_due(case) and not unproven:
            return parts
        if not self._compared(group, joined, parts, unproven, padded=padding is not None):
            if not unproven and case in kind.compared:  # a repeated comparison
                kind.postpone()
                return parts
            del joined, parts
            self._evidence.postpone(unproven)
            free_device_memory()
            return self._run_each(group, max_rows)
        if not self._evidence.proves(unproven):
            return self._run_each(group, max_rows)
        kind.passed(case)
        return parts

    def _run_each(self, group: ForwardGroup, max_rows: int) -> list[Any]:
        return [self.run(one, max_rows)[0] for one in group.singles()]

    def _must_be_equal(self, arguments: Sequence[RowArgument]) -> bool:
        """Return whether the content of any of these arguments must be equal in calls that share a forward."""
        return any(argument in self._evidence.by_content for argument in arguments)

    def _compared(self, group: ForwardGroup, *comparison: Any, padded: bool) -> bool:
        """Compare as `_compare` does; return False if that runs out of memory."""
        try:
            with translated_errors():
                self._compare(group, *comparison, padded=padded)
        except DeviceMemoryError as error:
            release_frames(error)
            return False
        return True

    def _compare(
        self,
        group: ForwardGroup,
        joined: Any,
        parts: Sequence[Any],
        unproven: Sequence[RowArgument],
        *,
        padded: bool,
    ) -> None:
        """Compare the outputs of a shared forward with forwards of the calls alone; record what it proves.

        `padded`: lengths differ, and the shared forward padded them. Raises `NotShareableError` if outputs differ
        and no argument explains the difference (see `row_evidence`).
        """
        alone = [self._forward(*call) for call in group.alone]
        equal = all(outputs.is_close(part, one) for part, one in zip(parts, alone, strict=True))
        # The output of a padded call differs by rounding from the one of the call alone.
        known = {} if padded else dict(enumerate(alone))
        seen = self._observe(group, unproven, joined, parts, known) if unproven else {}
        if not equal and not any(share is not None and share > MAX_INFLUENCE for share in seen.values()):
            raise NotShareableError(UNEQUAL, self._mismatch(group, parts, alone))
        for argument in self._evidence.record(seen):
            _log.info(
                "calls share a forward only if an argument is equal model=%s argument=%s",
                self._name,
                ".".join(map(str, argument.path)),
            )

    def _mismatch(self, group: ForwardGroup, parts: Sequence[Any], alone: Sequence[Any]) -> str:
        """Return a description of outputs that differ: the model, the shapes of its arguments, and how much."""
        size = max(outputs.distance(part, one) for part, one in zip(parts, alone, strict=True))
        shapes = [
            f"{name}={tuple(value.shape)}"
            for name, value in group.arguments[0].items()
            if isinstance(value, torch.Tensor)
        ]
        return (
            f"the rows of a shared forward depend on each other model={self._name} calls={len(group.rows)}"
            f" difference={size:.2g} {' '.join(shapes)}"
        )

    def _run_joined(self, kind: CallKind, joined: Any, max_rows: int, left_out: Mapping[str, Any]) -> Any:
        """Run joined arguments in forwards of at most `max_rows` rows; return the joined output.

        `left_out`: arguments that the model gets in place of joined ones.
        """
        total = count_rows(joined.values())
        layout, listed = kind.layout, kind.listed
        parts, sizes = [], []
        for begin in range(0, total, max_rows):
            end = min(begin + max_rows, total)
            part = joined if end - begin == total else layout.narrow(joined, begin, end)
            padding = 0 if self._fixed_rows is None else min(self._fixed_rows, max_rows) - (end - begin)
            if padding:
                first = layout.narrow(part, 0, 1)
                part = layout.join([part] + [first] * padding, [end - begin] + [1] * padding)
            with _unused(_generators(part)):
                output = self._forward((), {**part, **left_out})
            if padding:
                output = outputs.split(output, [end - begin, padding], listed=listed)[0]
            parts.append(output)
            sizes.append(end - begin)
        return outputs.merge(parts, sizes, listed=listed)

    def _observe(
        self,
        group: ForwardGroup,
        arguments: Sequence[RowArgument],
        joined: Any,
        parts: Sequence[Any],
        alone: dict[int, Any],
    ) -> dict[RowArgument, float | None]:
        """See `RowEvidence.observe`."""

        def forward(by_name: Mapping[str, Any]) -> Any:
            return self._forward((), by_name)

        with _unused(_generators(joined)):
            layout = group.kind.layout
            listed = group.kind.listed
            done = ObservedForward(layout, group.arguments, group.rows, joined, parts, listed, alone, forward)
            return self._evidence.observe(arguments, done)


def _padding(group: ForwardGroup) -> int | None:
    """Return floor(log2(longest / shortest length)); None if the lengths are equal.

    Only lengths that differ between calls count. A little padding proves nothing about much padding.
    """
    layout = group.kind.layout
    found = None
    for by_call in zip(*(free_lengths(layout, arguments) for arguments in group.arguments), strict=True):
        if len({frozenset(lengths) for lengths in by_call}) > 1:
            every = [length for lengths in by_call for length in lengths]
            ratio = max(every) // max(min(every), 1)
            found = max(found or 0, ratio.bit_length() - 1)
    return found


def _generators(arguments: Mapping[str, Any]) -> list[torch.Generator]:
    return [value for value in arguments.values() if isinstance(value, torch.Generator)]


@contextmanager
def _unused(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Check that a forward does not use these generators; else restore them and raise `NotShareableError`."""
    states = [generator.get_state() for generator in generators]
    yield
    for generator, state in zip(generators, states, strict=True):
        if not torch.equal(generator.get_state(), state):
            generator.set_state(state)
            raise NotShareableError("random", "the forward draws from a generator")
