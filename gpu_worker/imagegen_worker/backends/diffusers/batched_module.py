"""A method of a model whose calls from tasks wait for shared forwards; see `engines.continuous.scheduler`."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.diffusers import outputs
from imagegen_worker.backends.diffusers.batch_dimensions import BatchDimensions
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.implied_masks import ImpliedMasks, pads
from imagegen_worker.backends.diffusers.layouts import count_rows, describe
from imagegen_worker.backends.diffusers.module_state import StateMonitor
from imagegen_worker.backends.diffusers.prompt_cache import PromptCache
from imagegen_worker.backends.diffusers.shared_forward import CallKind, ForwardGroup, SharedForwards
from imagegen_worker.backends.diffusers.shared_modules import ModuleGuard
from imagegen_worker.backends.diffusers.text_masks import exclude_masked_text
from imagegen_worker.backends.diffusers.tiling import tile_sides, tiled
from imagegen_worker.backends.diffusers.uninterrupted import UninterruptedForwards
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.calls import (
    Call,
    NotShareableError,
    Task,
    current_task,
    wait_for_forward,
)

_log = logging.getLogger(__name__)


class BatchedModule:
    """Implements `Stage` for one method of a module, which it replaces.

    `shares` False: no two calls share a forward. `adapted`: adapters change the output, so that only calls with
    equal ones share; `activate` puts those of a task into effect before each forward. `tiles`: the module can work
    in tiles.
    """

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        method: str,
        *,
        is_denoiser: bool = False,
        shares: bool = True,
        fixed_rows: int | None = None,
        cache: "BoundedCache[bytes, Any] | None" = None,
        adapted: bool = True,
        activate: Callable[[Any], None] | None = None,
        tiles: bool = False,
        guard: ModuleGuard | None = None,
    ) -> None:
        self.name = name
        self.is_denoiser = is_denoiser
        self.is_decoder = method == "decode"
        self.fixed_rows = fixed_rows
        self._module = module
        self._method = method
        self._shares = shares
        self._cache = None if cache is None else PromptCache(cache, id(self))
        self._adapted = adapted
        self._activate = activate
        self._tiles = tiles
        self._guard = guard or ModuleGuard(lambda: 0)
        self._guard.add(module)
        self._uninterrupted: UninterruptedForwards | None = None
        if cache is not None:
            guarded = self._guard
            self._uninterrupted = UninterruptedForwards(module, lambda: guarded.forward_ended(module))
        self._state = StateMonitor(module) if is_denoiser else None
        self._forward: Callable[..., Any] = getattr(module, method)
        self._replaced_own = method in vars(module)
        self._names = _argument_names(module, self._forward)
        self._dimensions = BatchDimensions()
        self._masks = None
        if is_denoiser and fixed_rows is None:
            self._masks = ImpliedMasks(exclude_masked_text(module))
        self._forwards = SharedForwards(self._run_model, fixed_rows=fixed_rows, name=type(module).__name__)
        wrapped = functools.wraps(self._forward)(functools.partial(self._call))
        wrapped.stage = self  # type: ignore[attr-defined]
        setattr(module, method, wrapped)

    def remove(self) -> None:
        """Restore the module's own method."""
        if self._replaced_own:
            setattr(self._module, self._method, self._forward)
        else:
            delattr(self._module, self._method)
        if self._uninterrupted is not None:
            self._uninterrupted.remove()
        # Forwards whose time is not known yet refer to their stage, which must not keep the weights.
        del self._module, self._forward, self._state, self._activate, self._guard, self._uninterrupted

    @property
    def exclusive(self) -> bool:
        """Whether only one task at a time may use the module.

        True until a forward was observed to change no state of the module, and while calls change the module
        between forwards.
        """
        return self._guard.serial or (self._state is not None and not self._state.stateless)

    @property
    def differing_arguments(self) -> frozenset[str]:
        """Names of the arguments in which the two latest calls of other kinds differed."""
        return self._forwards.differing

    def free_memory(self) -> None:
        """Release the device memory that torch has cached."""
        free_device_memory()

    # ---- on the task's greenlet --------------------------------------------------------------------------------

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        task = current_task()
        uninterrupted = self._uninterrupted is not None and self._uninterrupted()
        if task is None or uninterrupted or torch.is_grad_enabled() or _is_autocast_enabled():
            # Grad mode and autocast belong to the thread, so a forward that needs them runs at once.
            if task is not None:
                self._activate_adapters(task)
            return self._run_forward(args, kwargs, hooked=uninterrupted)
        self._guard.before_forward(task, is_denoiser=self.is_denoiser)
        call = Call(self, args, kwargs, task, rows=count_rows((*args, *kwargs.values())))
        before = self._observe_dimensions(call)
        if self._cache is not None:
            self.describe(call)
            if call.payload is not None and (output := self._cache.copy(call.payload[1])) is not None:
                return output
        try:
            return self._wait(call)
        except Exception:
            if before is not None:  # a call that fails proves nothing about its arguments
                self._dimensions = before
            raise

    def _wait(self, call: Call) -> Any:
        """Return the output of the forward that runs the call."""
        wait: Callable[[Call], Any] = wait_for_forward
        if call.task.unwanted and self._cache is None:
            wait = self._call_without_unwanted
        if not torch.is_inference_mode_enabled():
            return wait(call)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # this mode belongs to the thread, too, and other tasks do not use it
            return wait(call)

    def _call_without_unwanted(self, call: Call) -> Any:
        """Run a call without the rows of cancelled images; the output repeats the rows of another image for them.

        Row r is of image r modulo the number of images: guidance repeats all images, one after the other.
        """
        images, unwanted = call.task.images, call.task.unwanted
        self.describe(call)
        if call.key is None or call.rows % images:
            return wait_for_forward(call)
        assert isinstance(call.key, CallKind)
        layout, listed = call.key.layout, call.key.listed
        kept = [row for row in range(call.rows) if row % images not in unwanted]
        ones = [1] * len(kept)
        joined = layout.join([call.payload[0]], [call.rows])
        part = layout.join([layout.narrow(joined, row, row + 1) for row in kept], ones)
        smaller = Call(
            self, (), part, call.task, rows=len(kept), described=True, key=call.key, payload=(part, b"")
        )
        by_row = dict(zip(kept, outputs.split(wait_for_forward(smaller), ones, listed=listed), strict=True))
        parts = [by_row.get(row, by_row[kept[0]]) for row in range(call.rows)]
        return outputs.merge(parts, [1] * call.rows, listed=listed)

    def describe(self, call: Call) -> None:
        """See `Stage.describe`. The payload is the arguments by name and the key in the cache."""
        call.described = True
        try:
            arguments = self._by_name(call.args, call.kwargs)
            if self._masks is not None:
                arguments = self._masks.add(arguments)
            description = describe(arguments, self._dimensions, equal_lengths=self.fixed_rows is not None)
        except NotShareableError as error:
            call.reason = error.reason if self._shares else ""
            return
        adapters = self._adapters(call.task)
        call.rows = description.rows
        if self._shares:
            call.key = self._forwards.kind(adapters, description, arguments)
        call.payload = (arguments, b"" if self._cache is None else self._cache.key(adapters, arguments))

    def _observe_dimensions(self, call: Call) -> BatchDimensions | None:
        """Record the dimensions of a call; return what was known before, or None if nothing was recorded."""
        if not self._shares or self._dimensions.settled:
            return None
        before = self._dimensions.copy()
        with suppress(NotShareableError):
            self._dimensions.observe(self._by_name(call.args, call.kwargs), call.rows)
        return before

    def _adapters(self, task: Task) -> Any:
        """Return the adapters that change the outputs of a task's calls, with their scales."""
        if not self._adapted:
            return None
        if self._cache is None or task.encoder_scale == 1 or not isinstance(task.adapters, tuple):
            return task.adapters
        return tuple((name, scale * task.encoder_scale) for name, scale in task.adapters)

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, in the order of the signature. Raises `NotShareableError`."""
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        if len(given) != len(args) + len(kwargs):
            raise NotShareableError("signature", "some positional arguments have no name in the signature")
        arguments = {name: given.pop(name) for name in self._names if name in given}
        return arguments | given

    # ---- on the scheduler's greenlet ---------------------------------------------------------------------------

    def run(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """See `Stage.run`. A call alone runs with its own arguments, unless rows are fixed."""
        first = calls[0]
        with translated_errors():  # joining and comparing take memory too
            self._activate_adapters(first.task)
            if len(calls) == 1:
                return [self._run_alone(first, max_rows)]
            if self._cache is None:
                return self._run_shared(calls, max_rows)
            return self._run_distinct(calls, max_rows)

    def run_in_tiles(self, call: Call) -> Any:
        """See `Stage.run_in_tiles`."""
        for side in tile_sides(self._module) if self._tiles else ():
            try:
                try:
                    with tiled(self._module, side), translated_errors():
                        output = self._run_alone(call, 1)
                finally:
                    self._guard.forward_ended(self._module)  # disabling tiles is no change by the call
            except DeviceMemoryError as error:
                release_frames(error)
            else:
                _log.warning("memory was short, %s ran in tiles side=%s", self.name, side)
                return output
            self.free_memory()
        raise DeviceMemoryError("out of memory")

    def _run_alone(self, call: Call, max_rows: int) -> Any:
        if self._cache is not None and call.key is not None and call.rows > 1 and call.task.images > 1:
            adapters = self._adapters(call.task)
            return self._cache.run_rows(self._forwards, _group([call]), adapters, max_rows, self._run_model)
        if call.key is None or (self.fixed_rows is None and call.rows <= max_rows):
            output = self._run_model(call.args, call.kwargs)
            if self._cache is not None and call.payload is not None:
                self._cache.put(call.payload[1], output)
            return output
        return self._run_shared([call], max_rows)[0]

    def _run_distinct(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """Run equal calls once. The outputs are not stored: shared forwards are less exact."""
        distinct = list({call.payload[1]: call for call in calls}.values())
        results = self.run(distinct, max_rows) if len(distinct) == 1 else self._run_shared(distinct, max_rows)
        if len(distinct) == len(calls):
            return results
        by_key = {call.payload[1]: output for call, output in zip(distinct, results, strict=True)}
        return [outputs.map_tensors(by_key[call.payload[1]], torch.clone) for call in calls]

    def _run_shared(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        group = _group(calls)
        try:
            return self._forwards.run(group, max_rows)
        except (DeviceMemoryError, DeviceLostError):
            raise
        except Exception:
            if self._masks is not None and pads(group.arguments):
                self._masks.reject()  # the model may take no mask of this kind
            raise

    def _activate_adapters(self, task: Task) -> None:
        """Put the adapters of a task into effect; calls that share a forward have equal ones."""
        if self._activate is not None:
            self._activate(self._adapters(task) or ())

    def _run_model(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model. Raises `DeviceMemoryError`, `DeviceLostError`, or whatever the model raises."""
        with translated_errors():
            return self._run_forward(args, kwargs)

    def _run_forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, hooked: bool = False) -> Any:
        """Run the model's own forward. `hooked`: the call's hooks may be in place, and it removes them itself."""
        try:
            if self._uninterrupted is not None:
                with self._uninterrupted.forward():
                    return self._forward(*args, **kwargs)
            if self._state is None or self._state.judged:
                return self._forward(*args, **kwargs)
            with self._state.forward():
                return self._forward(*args, **kwargs)
        finally:
            self._guard.forward_ended(self._module, hooked=hooked)


def _group(calls: Sequence[Call]) -> ForwardGroup:
    kind = calls[0].key
    assert isinstance(kind, CallKind)
    return ForwardGroup(
        kind,
        [call.payload[0] for call in calls],
        [call.rows for call in calls],
        [(call.args, call.kwargs) for call in calls],
    )


def _argument_names(module: torch.nn.Module, forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that may be positional or keywords, in order."""
    original = getattr(module, "_orig_mod", None)  # a compiled module takes (*args, **kwargs)
    parameters = inspect.signature(forward if original is None else original.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(each.name for each in parameters if each.kind in named)


def _is_autocast_enabled() -> bool:
    return torch.is_autocast_enabled("cpu") or (torch.cuda.is_available() and torch.is_autocast_enabled("cuda"))
