"""Loading of a pipeline onto a device, its tuning, and its description for brokers."""

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.backends.diffusers.call_defaults import read_defaults
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.model_folders import find_model
from imagegen_worker.backends.diffusers.pipeline_classes import describe_error
from imagegen_worker.backends.diffusers.single_file import count_of_single_file, load_single_file
from imagegen_worker.backends.diffusers.task_pipelines import Pipeline, TaskPipelines
from imagegen_worker.backends.diffusers.validation import count_weights
from imagegen_worker.config import LoadOptions, half_of_memory
from imagegen_worker.core.model import Model
from imagegen_worker.models.sources import ModelLocation

DEFAULTS_FILE = "imagegen.json"
"""File next to `model_index.json` with the defaults of a model, by the names in `_DEFAULT_KEYS`."""

_SHARE_OF_GPU = 0.7
"""Share of GPU memory for models; the rest is for running requests."""
_DEFAULT_KEYS = ("num_inference_steps", "guidance_scale", "width", "height", "max_side")


def choose_device(wanted: str, gpu: int = 0) -> torch.device:
    """Return the device of `--device`; a worker sees only its own GPU, as 0. Raises `StartError`."""
    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu < count:
        return torch.device("cuda", gpu)
    if wanted == "auto" and count == 0:
        return torch.device("cpu")
    visible = ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count)) or "none"
    raise StartError(
        f"torch {torch.__version__} sees no CUDA device {gpu}; it sees: {visible}. Check that torch fits the "
        "driver, or use --device cpu"
    )


def device_name(device: torch.device) -> str:
    """Return the name of a device for brokers: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def load_pipeline(place: ModelLocation, device: torch.device, options: LoadOptions) -> tuple[Pipeline, Path]:
    """Load a pipeline and put it on its device; return it with the folder of its configuration.

    Only files that are missing from the local cache are downloaded from the hub. Raises `StartError` if the
    pipeline can't be used, `DeviceMemoryError` and `DeviceLostError`.
    """
    if options.cpu_offload and device.type == "cpu":
        raise StartError("--cpu-offload needs a GPU, but the device is the CPU")
    for library in (transformers, diffusers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
        # Their own handlers use another log format.
        library.logging.disable_default_handler()
        library.logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    dtype = _dtype(device, options)
    try:
        with translated_errors():
            pipeline, folder = _read(place, dtype, options)
            if options.cpu_offload:
                pipeline.enable_model_cpu_offload(device=device)
            else:
                pipeline.to(device)
    except (StartError, DeviceMemoryError, DeviceLostError):
        raise
    except Exception as error:
        raise StartError(f"{place}: {describe_error(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder


def weigh_model(place: ModelLocation, name: str, options: LoadOptions) -> int:
    """Return the bytes that the weights take once loaded. Raises `StartError` if they can't be loaded."""
    width = _dtype(choose_device(options.device), options).itemsize
    if isinstance(place, Path) and place.is_file():
        return width * count_of_single_file(place, options.model_config)
    folder, variant = find_model(place, options.model_variant)
    return width * count_weights(folder, variant)


def memory_for_models(options: LoadOptions) -> int:
    """Return the default of `--model-memory` in bytes; the rest of the memory is for running requests."""
    device = choose_device(options.device)
    if device.type == "cpu" or options.cpu_offload:
        return half_of_memory()
    return int(_SHARE_OF_GPU * torch.cuda.get_device_properties(device).total_memory)


def _dtype(device: torch.device, options: LoadOptions) -> torch.dtype:
    # On a GPU, half precision takes half the memory and half the time; on a CPU it is many times slower.
    default = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, default if options.dtype == "auto" else options.dtype)
    return dtype


def _read(place: ModelLocation, dtype: torch.dtype, options: LoadOptions) -> tuple[Pipeline, Path]:
    if isinstance(place, Path) and place.is_file():
        return load_single_file(place, options.model_config, dtype)
    folder, variant = find_model(place, options.model_variant)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )
    return pipeline, folder


def tune_pipeline(pipeline: Pipeline, options: LoadOptions) -> None:
    """Apply the options for speed and memory. Raises `StartError` if the model does not support one."""
    denoisers = [name for name in pipeline.components if "unet" in name or "transformer" in name]
    try:
        if options.vae_tiling:
            pipeline.vae.enable_tiling()
        for name in denoisers:
            module = getattr(pipeline, name, None)
            if module is None:
                continue
            if options.attention_backend is not None:
                module.set_attention_backend(options.attention_backend)
            if options.compile:
                setattr(pipeline, name, _compiled(module))
    except Exception as error:
        raise StartError(f"the model does not support an option: {type(error).__name__}: {error}") from error


def _compiled(module: torch.nn.Module) -> Any:
    """Return a denoiser whose repeated blocks are compiled, or all of it if diffusers names no such blocks.

    One block takes a fraction of the time of all. Sizes are dynamic, so another size needs no compilation.
    """
    named = getattr(module, "_repeated_blocks", None) or ()
    if not any(type(part).__name__ in named for part in module.modules()):
        return torch.compile(module, dynamic=True)
    module.compile_repeated_blocks(dynamic=True)  # type: ignore[operator]
    return module


def describe(pipeline: Pipeline, name: str, folder: Path, pipelines: TaskPipelines) -> Model:
    """Return the capabilities of a pipeline, with the defaults of the file or else the pipeline's own.

    Raises `StartError` for a defaults file that can't be used.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    defaults = _read_defaults(folder)
    multiple = size_multiple(pipeline)
    own = read_defaults(pipeline)
    takes_guidance = "guidance_scale" in parameters
    guidance = defaults.get("guidance_scale", own.guidance_scale) if takes_guidance else None
    return Model(
        name=name,
        num_inference_steps=int(defaults.get("num_inference_steps", own.num_inference_steps)),
        guidance_scale=None if guidance is None else float(guidance),
        takes_guidance=takes_guidance,
        width=int(defaults.get("width", own.width)),
        height=int(defaults.get("height", own.height)),
        size_multiple=multiple,
        max_side=int(defaults.get("max_side", MAX_SIDE_PIXELS)),
        takes_negative_prompt="negative_prompt" in parameters,
        schedulers=pipelines.schedulers,
        tasks=pipelines.capabilities,
    )


def size_multiple(pipeline: Pipeline) -> int:
    """Return the number of pixels that width and height must be multiples of."""
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    # Pipelines that pack latents in patches have the patch size in one of these two places.
    processor = getattr(pipeline, "image_processor", None)
    packed = int(processor.config.vae_scale_factor) if processor is not None else scale
    return max(packed, scale * int(getattr(pipeline, "patch_size", 1)))


def _read_defaults(folder: Path) -> dict[str, float]:
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise StartError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise StartError(f"{path}: expected an object with some of {', '.join(_DEFAULT_KEYS)}")
    for key, value in content.items():
        if key not in _DEFAULT_KEYS or isinstance(value, bool) or not isinstance(value, int | float):
            raise StartError(f"{path}: {key}: {value!r}: expected a number for one of {', '.join(_DEFAULT_KEYS)}")
    return content
