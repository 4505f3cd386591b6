"""Unmodified diffusers pipelines whose calls share forwards; see `engines.continuous.scheduler` for the idea.

`PipelineBatcher` wraps a pipeline's denoiser, text encoders and VAE once. Called from a task of a scheduler, they
wait for a shared forward; called from anywhere else, they run at once. Each request runs the pipeline's own
`__call__` on a private copy of the pipeline.

Wrap after everything that replaces `forward` (offloading, `torch.compile`), never before.
"""

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

from imagegen_worker.backends import DeviceMemoryError, OnStep
from imagegen_worker.backends.diffusers.batched_module import BatchedModule
from imagegen_worker.backends.diffusers.cuda_timer import CudaTimer
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.host_copies import HostCopies
from imagegen_worker.backends.diffusers.outputs import images_of
from imagegen_worker.backends.diffusers.pipeline_copy import private_copy
from imagegen_worker.backends.diffusers.shared_modules import ModuleGuard
from imagegen_worker.backends.diffusers.step_callbacks import MakePreviews, report_steps
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.calls import Task, current_task
from imagegen_worker.engines.continuous.timing import Timer, WallTimer

PROMPT_CACHE_BYTES = 256 * 2**20


class LoadedAdapters(Protocol):
    """The adapters of the models of a pipeline."""

    @property
    def revision(self) -> int:
        """Number that changes whenever adapters are loaded or unloaded."""

    def activate(self, loras: Any, /, *, fresh: bool = False) -> None:
        """Use exactly these adapters from the next forward on. `fresh`: calls may have changed scales since."""


class PipelineBatcher:
    """Lets calls of a pipeline, and of others with the same models (`from_pipe`), share forwards.

    `fixed_rows` is the deterministic mode: every forward of the denoiser is padded to so many rows, and encoders
    and decoders run each request alone, so that other requests change no bit of an image, under the conditions of
    docs/decisions/0013-bit-equality.md. `adapters` are those of a task before each forward of a denoiser or text
    encoder.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        fixed_rows: int | None = None,
        prompt_cache_bytes: int = PROMPT_CACHE_BYTES,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._guard = ModuleGuard(lambda: 0 if adapters is None else adapters.revision)
        self._fixed_rows = fixed_rows
        self._adapters = adapters
        self._activate = None if adapters is None else self._activate_adapters
        self._scaled_calls = 0
        """Running calls that change the scales of adapters."""
        self._scales_changed = False
        self._prompts: BoundedCache[bytes, Any] = BoundedCache(prompt_cache_bytes)
        self._modules: list[BatchedModule] = []
        self.add(pipeline)
        device = getattr(pipeline, "device", torch.device("cpu"))
        self._on_gpu = device.type == "cuda"
        self.timer: Timer = CudaTimer(device) if self._on_gpu else WallTimer()

    def add(self, pipeline: Any) -> None:
        """Wrap the models of one more pipeline, except those that are wrapped already."""
        shares = self._fixed_rows is None
        for name, module in pipeline.components.items():
            if not isinstance(module, torch.nn.Module):
                continue
            adapted = {"activate": self._activate}
            if "unet" in name or "transformer" in name:
                self._wrap(name, module, "forward", is_denoiser=True, fixed_rows=self._fixed_rows, **adapted)
            elif name.startswith("text_encoder"):
                self._wrap(name, module, "forward", cache=self._prompts, shares=shares, **adapted)
            elif name.startswith("vae") and hasattr(module, "decode") and not _is_upcast(module):
                plain = {"adapted": False, "tiles": True}
                self._wrap(f"{name}.decode", module, "decode", shares=shares, **plain)
                if hasattr(module, "encode"):  # returns a distribution, which can't be split; still limits memory
                    self._wrap(f"{name}.encode", module, "encode", shares=False, **plain)

    def _activate_adapters(self, wanted: Any) -> None:
        """Activate adapters, and restore their scales if a pipeline call may have changed them."""
        assert self._adapters is not None
        self._adapters.activate(wanted, fresh=self._scales_changed)
        self._scales_changed = self._scaled_calls > 0

    @contextmanager
    def _scaled(self, task: Task | None, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Enter a block in which a call runs that may scale its adapters.

        Pipelines multiply the scales in the shared text encoders and divide them afterwards, while other calls
        use these too. The scale is therefore part of the task, and is set before each forward.
        """
        scale = _adapter_scale(arguments)
        if task is None or scale == 1:
            yield
            return
        task.encoder_scale = scale
        self._scaled_calls += 1
        self._scales_changed = True
        try:
            yield
        finally:
            self._scaled_calls -= 1

    @contextmanager
    def _copying(self, task: Task | None) -> Iterator[None]:
        """Enter a block in which a call copies to the device without waiting, except while its task waits."""
        if task is None or not self._on_gpu:
            yield
            return
        with HostCopies() as copies:
            task.waiting = copies.paused
            try:
                yield
            finally:
                task.waiting = nullcontext

    def _wrap(self, name: str, module: torch.nn.Module, method: str, **options: Any) -> None:
        if hasattr(getattr(module, method), "stage"):
            return
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{name}: use `torch.compile(module)` in place of `module.compile()`")
        self._modules.append(BatchedModule(name, module, method, guard=self._guard, **options))

    def close(self) -> None:
        """Restore the methods of the models."""
        for module in self._modules:
            module.remove()
        self._modules.clear()

    @staticmethod
    @contextmanager
    def session() -> Iterator[None]:
        """Disable gradients for all tasks: torch's setting belongs to the thread, not to a task."""
        with torch.no_grad():
            yield

    def generate(
        self, arguments: Mapping[str, Any], seed: int, on_step: OnStep | None = None, **options: Any
    ) -> Any:
        """Call the pipeline for one seed; return its image. See `generate_all`."""
        return self.generate_all(arguments, (seed,), on_step, **options)[0]

    def generate_all(
        self,
        arguments: Mapping[str, Any],
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        *,
        pipeline: Any = None,
        previews: MakePreviews | None = None,
    ) -> list[Any]:
        """Call the pipeline with these arguments, from a task; return one image for each seed.

        `pipeline` is another one with the same models, or None. `previews` makes the previews for `on_step` from
        the latents after each step. Raises `DeviceMemoryError`, `DeviceLostError`, and whatever the call raises.
        """
        private = private_copy(pipeline or self._pipeline)
        arguments = dict(arguments)
        parameters = inspect.signature(private.__call__).parameters
        if "generator" in parameters:
            # On the CPU for every device: the same seed gives the same noise on every GPU.
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            arguments["generator"] = generators if len(generators) > 1 else generators[0]
        if on_step is not None:
            checked = None if previews is None else _for_latents_of(len(seeds), previews)
            report_steps(private, arguments, parameters, on_step, checked)
        kind = _kind(private, arguments)
        try:
            task = current_task()
            copying = self._copying(task)
            with self._guard.call(task, kind), self._scaled(task, arguments), copying, translated_errors():
                output = private(**arguments)
        except DeviceMemoryError as error:
            release_frames(error)
            free_device_memory()
            raise
        finally:
            # A wrapped `step` refers to its scheduler: without this, the cycle lives until garbage collection.
            vars(getattr(private, "scheduler", private)).pop("step", None)
        return images_of(output)


def _for_latents_of(images: int, previews: MakePreviews) -> MakePreviews:
    """Return `previews` for latents that have one row for each image; others have no previews."""
    return lambda latents: previews(latents) if latents is not None and len(latents) == images else ()


def _adapter_scale(arguments: Mapping[str, Any]) -> float:
    """Return the factor by which a call scales its adapters: `{"scale": 0.5}` in its attention arguments."""
    for name, value in arguments.items():
        if name.endswith("attention_kwargs") and isinstance(value, Mapping):
            scale = value.get("scale")
            if isinstance(scale, int | float):
                return float(scale)
    return 1.0


def _kind(pipeline: Any, arguments: Mapping[str, Any]) -> Hashable:
    """Return the kind of a call: the names of its arguments, and which plain ones are None, zero or false.

    Calls of one kind change the same attributes of models, if any.
    """
    plain = {name: value for name, value in arguments.items() if isinstance(value, bool | int | float | None)}
    switches = frozenset((name, value is None, bool(value)) for name, value in plain.items())
    return type(pipeline).__qualname__, switches, frozenset(arguments.keys() - plain.keys())


def _is_upcast(vae: torch.nn.Module) -> bool:
    """Return whether pipelines convert this VAE to float32 around a decode: other calls can't use it meanwhile."""
    return getattr(vae, "dtype", None) == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
