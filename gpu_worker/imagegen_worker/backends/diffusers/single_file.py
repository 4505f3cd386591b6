"""Pipelines from a single file of weights in the layout of the model's authors, which diffusers converts.

A folder with a configuration names the components of the pipeline, and has those that the file lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import single_file_utils

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.model_folders import find_config, find_model
from imagegen_worker.backends.diffusers.validation import (
    count_numbers,
    count_weights,
    read_index,
    read_shapes,
    refuse_pickles,
)
from imagegen_worker.models.sources import HubModel, ModelLocation, read_source

_DENOISERS = ("unet", "transformer")
_VAE_PREFIXES = tuple(single_file_utils.LDM_VAE_KEYS)
_UNKNOWN = "v1"
"""Model type that diffusers returns for unknown weights."""


def load_single_file(path: Path, config: str | None, dtype: torch.dtype) -> tuple[Any, Path]:
    """Return the pipeline and the folder of its configuration.

    `config`: a folder or a hub id; None: inferred from the weights. Raises `StartError`, and whatever diffusers
    raises for weights that don't fit.
    """
    shapes = read_shapes(path)
    place = _place_of_config(path, config, shapes)
    with _naming(path, config):
        folder = find_config(place)
    index = read_index(folder)
    if not _is_whole(shapes):
        return _load_denoiser(path, config, index, dtype)
    kind: Any = getattr(diffusers, index["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise StartError(f"{path}: diffusers can't make a {kind.__name__} from a single file")
    refuse_pickles(folder, index)
    return kind.from_single_file(str(path), config=str(folder), dtype=dtype, local_files_only=True), folder


def count_of_single_file(path: Path, config: str | None) -> int:
    """Return the number of weights of the file and of the components that it lacks. Raises `StartError`."""
    shapes = read_shapes(path)
    place = _place_of_config(path, config, shapes)
    count = count_numbers(shapes)
    if not _is_whole(shapes):
        with _naming(path, config):
            folder, variant = find_model(place, None, without=_DENOISERS)
        count += count_weights(folder, variant, without=_DENOISERS)
    return count


@contextmanager
def _naming(path: Path, config: str | None) -> Iterator[None]:
    """Name the file and the option in a `StartError` about the model that was inferred from its weights."""
    try:
        yield
    except StartError as error:
        if config is not None:
            raise
        raise StartError(
            f"{path}: the file has no configuration, and that of the model whose layout it has is missing; name a "
            f"folder with a model_index.json by --model-config ({error})"
        ) from error


def _place_of_config(path: Path, config: str | None, shapes: dict[str, tuple[int, ...]]) -> ModelLocation:
    return infer_config(path, shapes) if config is None else read_source(config).location


def _is_whole(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Return whether the file has more than a denoiser."""
    return any(name.startswith(_VAE_PREFIXES) for name in shapes)


def infer_config(path: Path, shapes: dict[str, tuple[int, ...]]) -> HubModel:
    """Return the model that weights of these names and shapes belong to. Raises `StartError` if it is unknown."""
    names = single_file_utils.CHECKPOINT_KEY_NAMES
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    kind = single_file_utils.infer_diffusers_model_type(weights)
    if kind == _UNKNOWN and not {names["v1"], names["clip"]} & weights.keys():
        raise StartError(f"{path}: the layout of the weights is unknown; name the model by --model-config")
    return HubModel(single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def _load_denoiser(path: Path, config: str | None, index: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Path]:
    """Return the pipeline with the denoiser of the file and all other components of the folder."""
    part = next((name for name in _DENOISERS if index.get(name)), None)
    kind: Any = None if part is None else getattr(diffusers, str(index[part][1]), None)
    if part is None or not hasattr(kind, "from_single_file"):
        raise StartError(
            f"{path}: diffusers can't make the denoiser of a {index['_class_name']} from a single file"
        )
    with _naming(path, config):
        folder, variant = find_model(_place_of_config(path, config, read_shapes(path)), None, without=[part])
    denoiser = kind.from_single_file(
        str(path), config=str(folder), subfolder=part, dtype=dtype, local_files_only=True
    )
    rest = {part: denoiser, "dtype": dtype, "variant": variant, "use_safetensors": True, "local_files_only": True}
    return diffusers.DiffusionPipeline.from_pretrained(folder, **rest), folder
