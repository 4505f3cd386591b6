"""A method of a model whose calls, when they come from tasks, meet in a hub; see `continuous.hub` for the idea."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.diffusers import joining
from imagegen_worker.backends.diffusers.row_evidence import MAX_INFLUENCE, JoinedForward, RowEvidence
from imagegen_worker.backends.diffusers.watching import StateWatch
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.calls import Call, NotJoinableError, Task, current_task, rendezvous

_CPU_IS_FULL = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""torch has no type of its own for what the CPU's allocator raises."""
MAX_KINDS = 4096
"""Kinds of calls that a stage remembers; the oldest are forgotten, and checked again."""
FIRST_RECHECK = 256
"""Joined forwards of a kind after which one is compared with forwards apart again; doubled each time."""
MAX_RECHECK = 16_384
"""Largest number of joined forwards of a kind from one comparison to the next."""


@dataclass(slots=True, eq=False)
class _Kind:
    """Calls that can share; the key of each of them. One object for all, so that comparing costs nothing."""

    listed: bool
    layout: joining.Layout
    free: bool
    leaves: tuple[joining.Leaf, ...]
    """The arguments that are joined row by row and may differ between calls of this kind."""
    checked: set[Hashable] = field(default_factory=set)
    """What has been compared with forwards apart: whether the calls' rows and their lengths were unlike."""
    patience: int = FIRST_RECHECK
    until_check: int = FIRST_RECHECK
    """Joined forwards until the next comparison with forwards apart."""

    def is_due(self, unlike: Hashable) -> bool:
        """Return whether a joined forward is to be compared with forwards apart; count it."""
        self.until_check -= 1
        return unlike not in self.checked or self.until_check <= 0

    def passed(self, unlike: Hashable) -> None:
        """Note that a joined forward was equal to forwards apart."""
        self.checked.add(unlike)
        if self.until_check <= 0:
            self.patience = min(2 * self.patience, MAX_RECHECK)
            self.until_check = self.patience


_WHOLE = "whole"
"""In `_Kind.checked`: a call whose rows were run apart was compared with the call as it came."""


@dataclass(slots=True)
class _Group:
    """Calls of one kind that share a forward: their arguments by name, their rows, and each as it is run apart."""

    kind: _Kind
    arguments: Sequence[Mapping[str, Any]]
    rows: Sequence[int]
    apart: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]

    def singles(self) -> "list[_Group]":
        """Return a group for each call."""
        return [
            _Group(self.kind, [arguments], [rows], [apart])
            for arguments, rows, apart in zip(self.arguments, self.rows, self.apart, strict=True)
        ]


class ModuleStage:
    """Implements `Stage` for one method of a module, whose place on the module it takes."""

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        method: str,
        *,
        is_denoiser: bool = False,
        joins: bool = True,
        fixed_rows: int | None = None,
        cache: "BoundedCache[bytes, Any] | None" = None,
        adapted: bool = True,
        activate: Callable[[Any], None] | None = None,
    ) -> None:
        self.name = name
        self.is_denoiser = is_denoiser
        self.fixed_rows = fixed_rows
        self._module = module
        self._method = method
        self._joins = joins
        self._cache = cache
        self._adapted = adapted
        self._activate = activate
        self._watch = StateWatch(module) if is_denoiser else None
        self._forward: Callable[..., Any] = getattr(module, method)
        self._own = method in vars(module)
        self._names = _names(module, self._forward)
        self._kinds: dict[Hashable, _Kind] = {}
        self._evidence = RowEvidence()
        wrapped = functools.wraps(self._forward)(functools.partial(self._call))
        wrapped.stage = self  # type: ignore[attr-defined]
        setattr(module, method, wrapped)

    def remove(self) -> None:
        """Give the module its own method back."""
        if self._own:
            setattr(self._module, self._method, self._forward)
        else:
            delattr(self._module, self._method)
        # Forwards that are still being accounted for remember their stage; it must not keep the weights.
        del self._module, self._forward, self._watch, self._activate

    @property
    def exclusive(self) -> bool:
        """Until the module is seen to keep no state, a task has it to itself."""
        return self._watch is not None and not self._watch.stateless

    def free_memory(self) -> None:
        """Give back to the device what torch has cached there."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ---- in the task ---------------------------------------------------------------------------------------

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        task = current_task()
        if task is None or torch.is_grad_enabled() or _autocasts():
            # Grad mode and autocast belong to the thread: a forward that needs them can't leave its place.
            if task is not None:
                self._adapt(task)
            return self._watched(args, kwargs)
        call = Call(self, args, kwargs, task, rows=joining.count_rows((*args, *kwargs.values())))
        if self._cache is not None:
            self.describe(call)
            if call.payload is not None and (found := self._cache.get(call.payload[1])) is not None:
                return joining.map_tensors(found, torch.clone)
        meet = rendezvous
        if task.unwanted and self._cache is None:
            meet = self._meet_without_unwanted
        if not torch.is_inference_mode_enabled():
            return meet(call)
        with torch.inference_mode(False), torch.no_grad():  # so does this, and the other tasks run without
            return meet(call)

    def _meet_without_unwanted(self, call: Call) -> Any:
        """Leave out the rows of images that nobody waits for; in the output, those of another stand for them.

        Row r is of image r modulo their number: guidance repeats all images, one after the other.
        """
        images, unwanted = call.task.images, call.task.unwanted
        self.describe(call)
        if call.key is None or call.rows % images:
            return rendezvous(call)
        assert isinstance(call.key, _Kind)
        layout, listed = call.key.layout, call.key.listed
        kept = [row for row in range(call.rows) if row % images not in unwanted]
        ones = [1] * len(kept)
        joined = layout.join([call.payload[0]], [call.rows])
        part = layout.join([layout.narrow(joined, row, row + 1) for row in kept], ones)
        smaller = Call(
            self, (), part, call.task, rows=len(kept), described=True, key=call.key, payload=(part, b"")
        )
        of = dict(zip(kept, joining.split(rendezvous(smaller), ones, listed=listed), strict=True))
        outputs = [of.get(row, of[kept[0]]) for row in range(call.rows)]
        return joining.merge(outputs, [1] * call.rows, listed=listed)

    def describe(self, call: Call) -> None:
        """See `Stage.describe`."""
        call.described = True
        try:
            arguments = self._bound(call.args, call.kwargs)
            description = joining.describe(arguments, exact=self.fixed_rows is not None)
        except NotJoinableError as error:
            call.reason = error.reason if self._joins else ""
            return
        adapters = call.task.adapters if self._adapted else None
        call.rows = description.rows
        if self._joins:
            call.key = self._kind(adapters, description, arguments)
        identity = b"" if self._cache is None else _identity((id(self), adapters), arguments)
        call.payload = (arguments, identity)

    def _kind(self, adapters: Hashable, description: joining.Description, arguments: Mapping[str, Any]) -> _Kind:
        """Return what calls with these adapters and this description have as their key."""
        layout = description.layout
        contents = self._evidence.contents(layout, arguments)
        identity = (adapters, description.listed, layout, contents)
        kind = self._kinds.get(identity)
        if kind is None:
            fixed = {leaf for leaf, _ in contents}
            leaves = tuple(leaf for leaf in joining.row_leaves(layout) if leaf not in fixed)
            kind = self._kinds[identity] = _Kind(description.listed, layout, layout.free, leaves)
            if len(self._kinds) > MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        return kind

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, in the order of the signature. Raises `NotJoinableError`."""
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        if len(given) != len(args) + len(kwargs):
            raise NotJoinableError("signature", "some arguments have no name")
        arguments = {name: given.pop(name) for name in self._names if name in given}
        return arguments | given

    # ---- in the hub ----------------------------------------------------------------------------------------

    def run(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """See `Stage.run`. A call that is alone is passed on as it came, unless rows are fixed."""
        first = calls[0]
        self._adapt(first.task)
        if len(calls) == 1 and self._has_rows_to_remember(first):
            return [self._run_rows(first, max_rows)]
        if len(calls) == 1 and (first.key is None or (self.fixed_rows is None and first.rows <= max_rows)):
            output = self._guarded(first.args, first.kwargs)
            self._remember(first, output)
            return [output]
        if self._cache is not None and len(calls) > 1:
            return self._run_distinct(calls, max_rows)
        return self._run_joined(calls, max_rows)

    def _adapt(self, task: Task) -> None:
        """Put the adapters of a task to work: those of all whose calls can share a forward with its own."""
        if self._activate is not None:
            self._activate(task.adapters or ())

    def _run_distinct(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """Run equal calls once. What was made in company is not remembered: it is not quite as exact."""
        distinct = list({call.payload[1]: call for call in calls}.values())
        outputs = self.run(distinct, max_rows) if len(distinct) == 1 else self._run_joined(distinct, max_rows)
        of = {call.payload[1]: output for call, output in zip(distinct, outputs, strict=True)}
        if len(distinct) == len(calls):
            return outputs
        return [joining.map_tensors(of[call.payload[1]], torch.clone) for call in calls]

    def _has_rows_to_remember(self, call: Call) -> bool:
        several = call.rows > 1 and call.task.images > 1
        return self._cache is not None and several and call.key is not None

    def _run_rows(self, call: Call, max_rows: int) -> Any:
        """Run each different row of a call once, for several images, or not at all if it is remembered.

        A row made in company is not quite as exact: it is remembered apart from what was made alone. Raises
        `NotJoinableError`.
        """
        assert self._cache is not None
        assert isinstance(call.key, _Kind)
        layout, listed = call.key.layout, call.key.listed
        joined = layout.join([call.payload[0]], [call.rows])
        rows = [layout.narrow(joined, index, index + 1) for index in range(call.rows)]
        names = [b"row " + _identity((id(self), call.task.adapters), row) for row in rows]
        known = {name: self._cache.get(name) for name in names}
        missing = {name: row for name, row in zip(names, rows, strict=True) if known[name] is None}
        for begin in range(0, len(missing), max_rows):
            part = dict(list(missing.items())[begin : begin + max_rows])
            group = _Group(call.key, list(part.values()), [1] * len(part), [((), row) for row in part.values()])
            for name, row in zip(part, self._run_group(group, max_rows), strict=True):
                known[name] = joining.map_tensors(row, torch.clone)
                self._cache.put(name, known[name], _nbytes(row))
        parts = [joining.map_tensors(known[name], torch.clone) for name in names]
        output = joining.merge(parts, [1] * len(names), listed=listed)
        if call.rows <= max_rows and call.key.is_due(_WHOLE):
            if not joining.close(output, self._guarded(call.args, call.kwargs)):
                raise NotJoinableError("unequal", "the rows of a call depend on each other")
            call.key.passed(_WHOLE)
        return output

    def _run_joined(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        kind = calls[0].key
        assert isinstance(kind, _Kind)
        rows = [call.rows for call in calls]
        return self._run_group(
            _Group(kind, [call.payload[0] for call in calls], rows, [(call.args, call.kwargs) for call in calls]),
            max_rows,
        )

    def _run_group(self, group: _Group, max_rows: int) -> list[Any]:
        """Run calls in forwards of at most `max_rows` rows; return their outputs. Raises `NotJoinableError`."""
        kind = group.kind
        unproven = self._evidence.unproven(kind.leaves, group.arguments) if len(group.rows) > 1 else []
        checkable = max(group.rows) <= max_rows  # else a call apart does not fit either
        if unproven and (not checkable or any(leaf in self._evidence.by_content for leaf in unproven)):
            return [self._run_group(one, max_rows)[0] for one in group.singles()]
        joined = kind.layout.join(group.arguments, group.rows)
        parts = joining.split(self._forwards(kind, joined, max_rows), group.rows, listed=kind.listed)
        if not checkable:
            return parts
        unlike = (any(n != group.rows[0] for n in group.rows), kind.free and _ragged(group.arguments, kind.listed))
        if not kind.is_due(unlike) and not unproven:
            return parts
        apart = [self._guarded(*call) for call in group.apart]
        equal = all(joining.close(part, alone) for part, alone in zip(parts, apart, strict=True))
        # A call whose text is padded in the joined forward is not quite the same apart.
        known = {} if unlike[1] else dict(enumerate(apart))
        seen = self._observed(group, unproven, joined, parts, known) if unproven else {}
        if not equal and not any(share is not None and share > MAX_INFLUENCE for share in seen.values()):
            raise NotJoinableError("unequal", "the rows of a joined forward depend on each other")
        self._evidence.record(seen)
        if any(leaf in self._evidence.by_content for leaf in unproven):
            return [self._run_group(one, max_rows)[0] for one in group.singles()]
        kind.passed(unlike)
        return parts

    def _forwards(self, kind: _Kind, joined: Any, max_rows: int) -> Any:
        """Run joined arguments in forwards of at most `max_rows` rows; return the joined output."""
        total = joining.count_rows(joined.values())
        layout, listed = kind.layout, kind.listed
        outputs, sizes = [], []
        for begin in range(0, total, max_rows):
            end = min(begin + max_rows, total)
            part = joined if end - begin == total else layout.narrow(joined, begin, end)
            padding = 0 if self.fixed_rows is None else min(self.fixed_rows, max_rows) - (end - begin)
            if padding:
                one = layout.narrow(part, 0, 1)
                part = layout.join([part] + [one] * padding, [end - begin] + [1] * padding)
            with _unused(_generators(part)):
                output = self._guarded((), part)
            if padding:
                output = joining.split(output, [end - begin, padding], listed=listed)[0]
            outputs.append(output)
            sizes.append(end - begin)
        return joining.merge(outputs, sizes, listed=listed)

    def _observed(
        self,
        group: _Group,
        leaves: Sequence[joining.Leaf],
        joined: Any,
        outputs: Sequence[Any],
        apart: dict[int, Any],
    ) -> dict[joining.Leaf, float | None]:
        """See `RowEvidence.observe`."""

        def forward(arguments: Mapping[str, Any]) -> Any:
            return self._guarded((), arguments)

        with _unused(_generators(joined)):
            layout = group.kind.layout
            done = JoinedForward(layout, group.arguments, group.rows, joined, outputs, apart, forward)
            return self._evidence.observe(leaves, done)

    def _remember(self, call: Call, output: Any) -> None:
        if self._cache is None or call.payload is None:
            return
        try:
            copied = joining.map_tensors(output, torch.clone)  # what is handed out may be changed in place
        except NotJoinableError:
            return
        self._cache.put(call.payload[1], copied, _nbytes(copied))

    def _guarded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with translated_errors():
            return self._watched(args, kwargs)

    def _watched(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._watch is None or self._watch.judged:
            return self._forward(*args, **kwargs)
        with self._watch.forward():
            return self._forward(*args, **kwargs)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise torch's errors about the device as the worker's own."""
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        translated: Exception = DeviceMemoryError(str(error))
    except torch.AcceleratorError as error:
        translated = DeviceLostError(str(error))
    except MemoryError as error:
        translated = DeviceMemoryError(str(error))
    except RuntimeError as error:
        if not any(words in str(error) for words in _CPU_IS_FULL):
            raise
        translated = DeviceMemoryError(str(error))
    raise translated  # out here, so that the frames of the first, which hold tensors, are gone


def _names(module: torch.nn.Module, forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that may come by place or by name, in order."""
    original = getattr(module, "_orig_mod", None)  # a compiled module takes (*args, **kwargs)
    parameters = inspect.signature(forward if original is None else original.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(each.name for each in parameters if each.kind in named)


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu") or (torch.cuda.is_available() and torch.is_autocast_enabled("cuda"))


def _identity(encoder: Any, arguments: Mapping[str, Any]) -> bytes:
    """Return what stands for a call of an encoder: every byte of its tensors, and all else."""
    return repr((encoder, joining.map_tensors(dict(arguments), joining.content))).encode()


def _nbytes(value: Any) -> int:
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    joining.map_tensors(value, count)
    return total


def _ragged(calls: Sequence[Mapping[str, Any]], listed: bool) -> bool:
    """Whether calls, given as their arguments, are unlike in the lengths that may differ."""
    return len({joining.lengths(arguments, listed=listed) for arguments in calls}) > 1


def _generators(arguments: Mapping[str, Any]) -> list[torch.Generator]:
    return [value for value in arguments.values() if isinstance(value, torch.Generator)]


@contextmanager
def _unused(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Make sure that a forward leaves these as they are. Raises `NotJoinableError` if it draws from one."""
    states = [generator.get_state() for generator in generators]
    yield
    for generator, state in zip(generators, states, strict=True):
        if not torch.equal(generator.get_state(), state):
            generator.set_state(state)
            raise NotJoinableError("random", "the forward draws from a generator")
