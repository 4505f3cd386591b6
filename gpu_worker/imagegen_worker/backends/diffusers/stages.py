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
from imagegen_worker.backends.diffusers.watching import StateWatch
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.calls import Call, NotJoinableError, Task, current_task, rendezvous

_CPU_IS_FULL = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""torch has no type of its own for what the CPU's allocator raises."""
MAX_KINDS = 4096
"""Kinds of calls that a stage remembers; the oldest are forgotten, and checked again."""


@dataclass(slots=True, eq=False)
class _Kind:
    """Calls that can share; the key of each of them. One object for all, so that comparing costs nothing."""

    listed: bool
    layout: joining.Layout
    free: bool
    checked: set[tuple[bool, bool]] = field(default_factory=set)
    """What has been compared with forwards apart, by whether the calls' rows and their lengths were unlike."""


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
            call.key = self._kind(adapters, description)
        identity = b"" if self._cache is None else _identity((id(self), adapters), arguments)
        call.payload = (arguments, identity)

    def _kind(self, adapters: Hashable, description: joining.Description) -> _Kind:
        """Return what calls with these adapters and this description have as their key."""
        identity = (adapters, description.listed, description.layout)
        kind = self._kinds.get(identity)
        if kind is None:
            layout = description.layout
            kind = self._kinds[identity] = _Kind(description.listed, layout, layout.free)
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
            ones = [1] * len(part)
            output = self._guarded((), layout.join(list(part.values()), ones))
            for name, row in zip(part, joining.split(output, ones, listed=listed), strict=True):
                known[name] = joining.map_tensors(row, torch.clone)
                self._cache.put(name, known[name], _nbytes(row))
        parts = [joining.map_tensors(known[name], torch.clone) for name in names]
        output = joining.merge(parts, [1] * len(names), listed=listed)
        if call.rows <= max_rows:
            self._check(call.key, [call], [output])
        return output

    def _run_joined(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        rows = [call.rows for call in calls]
        total = sum(rows)
        kind = calls[0].key
        assert isinstance(kind, _Kind)
        layout, listed = kind.layout, kind.listed
        joined = layout.join([call.payload[0] for call in calls], rows)
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
        parts = joining.split(joining.merge(outputs, sizes, listed=listed), rows, listed=listed)
        if max(rows) <= max_rows:  # else a call apart does not fit either
            self._check(kind, calls, parts)
        return parts

    def _check(self, kind: _Kind, calls: Sequence[Call], parts: Sequence[Any]) -> None:
        """Compare the first joined forward of its kind with forwards apart. Raises `NotJoinableError`."""
        unlike_rows = any(call.rows != calls[0].rows for call in calls)
        unlike = (unlike_rows, kind.free and _ragged(calls, kind.listed))
        if unlike in kind.checked:
            return
        for call, part in zip(calls, parts, strict=True):
            if not joining.close(part, self._guarded(call.args, call.kwargs)):
                raise NotJoinableError("unequal", "the rows of a joined forward depend on each other")
        kind.checked.add(unlike)

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


def _ragged(calls: Sequence[Call], listed: bool) -> bool:
    """Whether the calls are unlike in the lengths that may differ."""
    return len({joining.lengths(call.payload[0], listed=listed) for call in calls}) > 1


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
