"""Unmodified diffusers pipelines whose requests share forwards; see `continuous.hub` for the idea.

`Rendezvous` wraps a pipeline's denoiser, text encoders and VAE decoder once. Called from a task of a hub they wait
there for company; called from anywhere else they are what they were. Each request runs the pipeline's own
`__call__` on a shallow copy, with a scheduler of its own.

Wrap after everything that replaces `forward` (offloading, `torch.compile`), never before.
"""

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from imagegen_worker.backends import OnStep, Sketch
from imagegen_worker.backends.diffusers.stages import ModuleStage, translated_errors
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.timing import Timer, WallTimer

MakeSketches = Callable[[Any], Sequence[Sketch | None]]
"""From the latents of all images of a call to what draws each."""
PROMPT_CACHE_BYTES = 256 * 2**20


class Rendezvous:
    """Lets requests for a pipeline, and for others with the same models (`from_pipe`), share forwards.

    `fixed_rows` is the deterministic mode: every forward of the denoiser is padded to so many rows, and encoders
    and decoders run each request for itself, so that the other requests change no bit of an image, under the
    conditions of docs/decisions/0013-bit-equality.md. `activate` puts the
    adapters of a task to work, before each forward in which they may differ from those of the last one.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        fixed_rows: int | None = None,
        prompt_cache_bytes: int = PROMPT_CACHE_BYTES,
        activate: Callable[[Any], None] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._fixed_rows = fixed_rows
        self._activate = activate
        self._prompts: BoundedCache[bytes, Any] = BoundedCache(prompt_cache_bytes)
        self._stages: list[ModuleStage] = []
        self.adopt(pipeline)
        device = getattr(pipeline, "device", torch.device("cpu"))
        self.timer: Timer = CudaTimer(device) if device.type == "cuda" else WallTimer()

    def adopt(self, pipeline: Any) -> None:
        """Wrap the models of one more pipeline; those that are wrapped stay as they are."""
        alone = self._fixed_rows is not None
        for name, module in pipeline.components.items():
            if not isinstance(module, torch.nn.Module):
                continue
            adapted = {"activate": self._activate}
            if "unet" in name or "transformer" in name:
                self._wrap(name, module, "forward", is_denoiser=True, fixed_rows=self._fixed_rows, **adapted)
            elif name.startswith("text_encoder"):
                self._wrap(name, module, "forward", cache=self._prompts, joins=not alone, **adapted)
            elif name.startswith("vae") and hasattr(module, "decode") and not _is_upcast(module):
                self._wrap(f"{name}.decode", module, "decode", joins=not alone, adapted=False)
                if hasattr(module, "encode"):  # what it gives is no tensor: each for itself, yet within memory
                    self._wrap(f"{name}.encode", module, "encode", joins=False, adapted=False)

    def _wrap(self, name: str, module: torch.nn.Module, method: str, **options: Any) -> None:
        if hasattr(getattr(module, method), "stage"):
            return
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{name}: use `torch.compile(module)` in place of `module.compile()`")
        self._stages.append(ModuleStage(name, module, method, **options))

    def close(self) -> None:
        """Leave the models as they were."""
        for stage in self._stages:
            stage.remove()
        self._stages.clear()

    @staticmethod
    @contextmanager
    def session() -> Iterator[None]:
        """Hold `no_grad` open. It belongs to the thread: the first task to end would turn gradients on for all."""
        with torch.no_grad():
            yield

    def generate(self, arguments: Mapping[str, Any], seed: int, on_step: OnStep | None = None, **how: Any) -> Any:
        """Return the one image of a call; see `generate_all`."""
        return self.generate_all(arguments, (seed,), on_step, **how)[0]

    def generate_all(
        self,
        arguments: Mapping[str, Any],
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        *,
        pipeline: Any = None,
        sketches: MakeSketches | None = None,
    ) -> list[Any]:
        """Return the images that the pipeline's call with these arguments and seeds gives, one for each seed.

        Called from a task of a hub. `pipeline` is another one with the same models; `sketches` makes of the
        latents after each step what `on_step` is given. Raises `DeviceMemoryError`,
        `DeviceLostError`, and whatever else the call raises.
        """
        mine = private_copy(pipeline or self._pipeline)
        arguments = dict(arguments)
        parameters = inspect.signature(mine.__call__).parameters
        if "generator" in parameters:
            # On the CPU whatever the device is: the same seed gives the same noise on every card.
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            arguments["generator"] = generators if len(generators) > 1 else generators[0]
        if on_step is not None:
            watched = None if sketches is None else _for_so_many(len(seeds), sketches)
            tell_steps(mine, arguments, parameters, on_step, watched)
        try:
            with translated_errors():
                output = mine(**arguments)
        finally:
            vars(getattr(mine, "scheduler", mine)).pop("step", None)  # a circle, which would live on for a while
        return list(output[0] if isinstance(output, tuple) else output.images)


def _for_so_many(images: int, sketches: MakeSketches) -> MakeSketches:
    """Return what makes sketches only of latents that have a row for each image."""
    return lambda latents: sketches(latents) if latents is not None and len(latents) == images else ()


_fresh_schedulers: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
"""A new scheduler for each that a pipeline came with; a copy of it costs a fifth of making one."""


def private_copy(pipeline: Any) -> Any:
    """Return a shallow copy that shares the models, with a scheduler of its own, for one request."""
    mine = copy.copy(pipeline)
    for name, part in vars(pipeline).items():
        if hasattr(part, "set_timesteps") and hasattr(type(part), "from_config"):
            if part not in _fresh_schedulers:
                _fresh_schedulers[part] = type(part).from_config(part.config)
            setattr(mine, name, copy.deepcopy(_fresh_schedulers[part]))
    mine.set_progress_bar_config(disable=True)
    # Offloading takes its hooks off and on again when a call ends; others are in the midst of theirs.
    object.__setattr__(mine, "maybe_free_model_hooks", lambda: None)
    if hasattr(type(pipeline), "_execution_device"):
        if pipeline not in _devices:
            _devices[pipeline] = pipeline._execution_device
        object.__setattr__(mine, "_fixed_device", _devices[pipeline])
        object.__setattr__(mine, "__class__", _with_fixed_device(cast(Any, type(pipeline))))
    return mine


_devices: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
"""Where the models of each pipeline run. diffusers walks all their parts to find out, for every call."""


@functools.lru_cache(maxsize=64)
def _with_fixed_device(kind: type) -> type:
    """Return a pipeline's class, but with the device that is known already."""
    fixed = property(lambda self: self._fixed_device)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "_execution_device": fixed})


def tell_steps(
    pipeline: Any,
    arguments: dict[str, Any],
    parameters: Mapping[str, Any],
    on_step: OnStep,
    sketches: MakeSketches | None = None,
) -> None:
    """Have a pipeline's call tell of its steps: by its own callback, else by those of its scheduler."""

    def tell(step: int, steps: int, latents: Any) -> None:
        on_step(step, steps, *(() if sketches is None else (sketches(latents),)))

    if "callback_on_step_end" in parameters:
        wanted = arguments.get("num_inference_steps", 0)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps = getattr(pipe, "num_timesteps", None) or max(wanted, step + 1)
            tell(step + 1, steps, tensors.get("latents"))
            return tensors

        arguments["callback_on_step_end"] = after_step
        return
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if not hasattr(scheduler, "step"):
        return
    steps = 0
    stock_step = scheduler.step

    @functools.wraps(stock_step)
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        output = stock_step(*args, **kwargs)
        steps += 1
        tell(steps, max(len(scheduler.timesteps), steps), None if sketches is None else output[0])
        return output

    scheduler.step = step


class CudaTimer:
    """Measures by events on the device's current stream, without holding it up."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def start(self) -> list[torch.cuda.Event]:
        """Return the mark of a piece of work that begins now."""
        mark = [torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)]
        mark[0].record(self._stream)
        return mark

    def stop(self, mark: list[torch.cuda.Event]) -> None:
        """Say that the piece of work has been handed to the device."""
        mark[1].record(self._stream)

    def seconds(self, mark: list[torch.cuda.Event], *, wait: bool) -> float | None:
        """Return how long it took; None if the device has not done it yet."""
        if wait:
            mark[1].synchronize()
        elif not mark[1].query():
            return None
        return float(mark[0].elapsed_time(mark[1])) / 1000


def _is_upcast(vae: torch.nn.Module) -> bool:
    """Whether pipelines turn this VAE to float32 around its decode: then nobody may come in between."""
    return getattr(vae, "dtype", None) == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
