"""Checks that a folder is a complete pipeline, before it is loaded: diffusers' own errors are misleading."""

import importlib
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.pipeline_classes import install_hint, missing_packages, refusal
from imagegen_worker.models.sources import INDEX_FILE, PICKLE_SUFFIXES, WEIGHTS_SUFFIX

_LIBRARIES = ("diffusers", "transformers")
MODULAR_INDEX_FILE = "modular_model_index.json"
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-0*(?P<shards>\d+))?"
    + re.escape(WEIGHTS_SUFFIX),
    re.ASCII,
)

MODULAR = (
    "a modular pipeline (modular_model_index.json without model_index.json), which is not supported; use a "
    "repository of the same model with a model_index.json"
)

_VariantFiles = dict[str | None, list[Path]]
"""Weight files of a component by variant; None: the files without a variant."""


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of `model_index.json`.

    Raises `StartError` if it names no pipeline of diffusers, or one that can't serve requests.
    """
    path = folder / INDEX_FILE
    if not path.exists() and (folder / MODULAR_INDEX_FILE).exists():
        raise StartError(f"{folder}: {MODULAR}")
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StartError(f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: not JSON: {error}") from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    if isinstance(name, list) or (folder / "None.py").exists():  # diffusers would load code of that name
        raise StartError(f"{path}: a pipeline with code of its own is not loaded")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    known = isinstance(kind, type) and (issubclass(kind, diffusers.DiffusionPipeline) or missing_packages(kind))
    if kind is None or not known:
        raise StartError(f"{path}: diffusers {diffusers.__version__} has no pipeline {name!r}")
    if reason := refusal(kind):
        raise StartError(f"{path}: {reason}")
    return dict(index)


def component_classes(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the library and the class of each component that an index names.

    Other entries are settings of the pipeline, which may be lists of two numbers.
    """
    return {
        part: (value[0], value[1])
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
    }


def check_folder(folder: Path, variant: str | None = None, *, without: Collection[str] = ()) -> str | None:
    """Return the variant of weights to load from a folder: none if all components have weights without one.

    `without`: components that come from elsewhere. Raises `StartError` for a folder with components that are
    missing, truncated, pickled, or of an unknown class.
    """
    chosen, files = _chosen(folder, variant, without)
    for path in files:
        read_shapes(path)
    return chosen


def count_weights(folder: Path, variant: str | None, *, without: Collection[str] = ()) -> int:
    """Return the number of weights (elements) of a pipeline. Raises as `check_folder` does."""
    return sum(count_numbers(read_shapes(path)) for path in _chosen(folder, variant, without)[1])


def count_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of elements of tensors with these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def _chosen(folder: Path, variant: str | None, without: Collection[str]) -> tuple[str | None, list[Path]]:
    """Return the variant to load and its files."""
    parts: dict[str, _VariantFiles] = {}
    for part, (library, name) in component_classes(read_index(folder)).items():
        if part in without:
            continue
        flat = (folder / "config.json").is_file()  # such a repository has its one component at its root
        if not (folder / part).is_dir():
            if flat:
                continue
            raise StartError(f"{folder}: the folder of {part} ({name}) is missing")
        _check_settings(folder / part)
        if _has_weights(folder / part, library, name):
            parts[part] = _variants(folder / part)
            if not parts[part]:
                raise StartError(f"{folder / part}: {_missing_weights(folder / part)}")
    chosen = _choose(folder, parts, variant)
    return chosen, [path for there in parts.values() for path in there[chosen if chosen in there else None]]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a file.

    Raises `StartError` if it is truncated or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StartError(f"{path}: not a complete {WEIGHTS_SUFFIX} file: {one_line(error)}") from error


def refuse_pickles(folder: Path, parts: Collection[str]) -> None:
    """Raise `StartError` if a component has only pickled weights."""
    for part in parts:
        if (folder / part).is_dir() and not _variants(folder / part) and _pickles(folder / part):
            raise StartError(f"{folder / part}: {_missing_weights(folder / part)}")


def _check_settings(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StartError(f"{path}: not JSON: {error}") from error


def _has_weights(folder: Path, library: str, name: str) -> bool:
    if library not in _LIBRARIES:
        return (folder / "config.json").is_file()
    module = importlib.import_module(library)  # not a global: transformers replaces its own module
    kind = getattr(module, name, None)
    if not isinstance(kind, type):
        version = module.__version__
        raise StartError(f"{folder.parent / INDEX_FILE}: {library} {version} has no {name!r} for {folder.name}")
    if packages := missing_packages(kind):
        raise StartError(f"{folder.parent / INDEX_FILE}: {name} ({folder.name}) needs {install_hint(packages)}")
    return issubclass(kind, torch.nn.Module)


def _variants(folder: Path) -> _VariantFiles:
    found: _VariantFiles = {}
    shards: dict[str | None, int] = {}
    for path in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"], []).append(path)
            shards[match["variant"]] = int(match["shards"] or 1)
    for variant, paths in found.items():
        if len(paths) < shards[variant]:
            raise StartError(f"{folder}: only {len(paths)} of {shards[variant]} weight files are present")
    return found


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)


def _missing_weights(folder: Path) -> str:
    if pickles := _pickles(folder):
        return (
            f"only pickled weights ({', '.join(pickles)}), which are not loaded; convert them to {WEIGHTS_SUFFIX}"
        )
    return f"the weights ({WEIGHTS_SUFFIX}) are missing"


def _choose(folder: Path, parts: dict[str, _VariantFiles], variant: str | None) -> str | None:
    """Return the requested variant, or one for which each component has weights."""
    if variant is not None and not any(variant in there for there in parts.values()):
        known = ", ".join(sorted({each for there in parts.values() for each in there if each})) or "none"
        raise StartError(f"{folder}: there is no variant {variant!r} of the weights; there are: {known}")
    chosen = variant
    if chosen is None and (lacking := [there for there in parts.values() if None not in there]):
        chosen = min(each for each in lacking[0] if each is not None)
    for part, there in parts.items():
        if chosen not in there and None not in there:
            raise StartError(
                f"{folder / part}: neither plain weights nor those of the variant {chosen!r} are there"
            )
    return chosen
