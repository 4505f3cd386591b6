"""From a pipeline folder to a pipeline on a device, and to what brokers are told of it."""

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.variants import Pipeline, Variants
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.model import Model

DEFAULTS_FILE = "imagegen.json"
"""Beside `model_index.json`: this model's own defaults, by the names in `_DEFAULT_KEYS`."""

_DEFAULT_STEPS = 50
_DEFAULT_SIDE = 512
_DEFAULT_KEYS = ("num_inference_steps", "guidance_scale", "width", "height", "max_side")


def choose_device(wanted: str, gpu: int = 0) -> torch.device:
    """Return the device of `--device`; a worker sees its own card alone, as 0. Raises `StartError`."""
    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu < count:
        return torch.device("cuda", gpu)
    if wanted == "auto" and count == 0:
        return torch.device("cpu")
    there = ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count)) or "none"
    raise StartError(
        f"torch {torch.__version__} sees no CUDA device {gpu}; it sees: {there}. Does it fit the driver? "
        "--device cpu does without"
    )


def device_name(device: torch.device) -> str:
    """Return what brokers show: `cpu`, or the card's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def load_pipeline(folder: Path, device: torch.device, options: LoadOptions) -> Pipeline:
    """Load a pipeline, offline, and put it on its device. Raises `StartError` if it can't be used."""
    if options.cpu_offload and device.type == "cpu":
        raise StartError("--cpu-offload needs a GPU: on a CPU the model is where it would be put")
    for library in (transformers, diffusers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
        # Their own handler writes lines of another form.
        library.logging.disable_default_handler()
        library.logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Half the memory and twice the speed on a GPU; on a CPU half precision is many times slower.
    usual = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, usual if options.dtype == "auto" else options.dtype)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
        if options.cpu_offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartError(f"--model {folder}: {type(error).__name__}: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tune_pipeline(pipeline: Pipeline, options: LoadOptions) -> None:
    """Apply what makes a model faster or smaller. Raises `StartError` for what it can't do."""
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
                setattr(pipeline, name, torch.compile(module, dynamic=True))
    except Exception as error:
        raise StartError(f"the model can't be tuned as asked: {type(error).__name__}: {error}") from error


def describe(pipeline: Pipeline, name: str, folder: Path, variants: Variants) -> Model:
    """Return what can be asked of a pipeline, with its defaults: the file's, else the pipeline's own.

    Raises `StartError` for a defaults file that can't be used.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    defaults = _read_defaults(folder)
    multiple = size_multiple(pipeline)
    side = _native_side(pipeline)
    guidance: float | None = None
    if "guidance_scale" in parameters:
        guidance = float(defaults.get("guidance_scale", _default_of(parameters, "guidance_scale", 1.0)))
    return Model(
        name=name,
        num_inference_steps=int(
            defaults.get("num_inference_steps", _default_of(parameters, "num_inference_steps", _DEFAULT_STEPS))
        ),
        guidance_scale=guidance,
        width=int(defaults.get("width", side)),
        height=int(defaults.get("height", side)),
        size_multiple=multiple,
        max_side=int(defaults.get("max_side", MAX_SIDE_PIXELS)),
        takes_negative_prompt="negative_prompt" in parameters,
        schedulers=variants.schedulers,
        tasks=variants.traits,
    )


def size_multiple(pipeline: Pipeline) -> int:
    """Return the number of pixels that width and height must be multiples of."""
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    # Pipelines that pack latents in patches say so in one of these two places.
    processor = getattr(pipeline, "image_processor", None)
    packed = int(processor.config.vae_scale_factor) if processor is not None else scale
    return max(packed, scale * int(getattr(pipeline, "patch_size", 1)))


def _native_side(pipeline: Pipeline) -> int:
    latent_side = getattr(pipeline, "default_sample_size", None)
    if latent_side is None:
        denoiser = getattr(pipeline, "unet", None)
        if denoiser is None:
            denoiser = getattr(pipeline, "transformer", None)
        latent_side = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if not isinstance(latent_side, int):
        return _DEFAULT_SIDE
    return latent_side * int(getattr(pipeline, "vae_scale_factor", 8))


def _default_of(parameters: Any, name: str, otherwise: float) -> float:
    default = parameters[name].default if name in parameters else None
    return default if isinstance(default, int | float) else otherwise


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
