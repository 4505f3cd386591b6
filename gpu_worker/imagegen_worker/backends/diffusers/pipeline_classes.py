"""What a pipeline class says about itself before it is loaded: whether requests can be served by its call."""

import dataclasses
import inspect
import re
from typing import Any

import diffusers
import transformers
from diffusers.utils import BaseOutput
from diffusers.utils import import_utils as diffusers_packages

_IMAGE_FIELDS = frozenset({"images", "image"})
_GIVEN = frozenset({"self", "prompt", "image", "mask_image", "height", "width"})
"""Parameters without a default that requests give."""
_NEEDED = frozenset({"control_image"})
"""Optional parameters without which the calls that have them fail."""
_PACKAGES = {"opencv": "opencv-python", "cv2": "opencv-python", "bs4": "beautifulsoup4", "pil": "pillow"}
"""Names of packages to install, where they differ from the name of the module."""
_REQUIRES = re.compile(r"requires the (\w+) library", re.IGNORECASE)


def refusal(kind: type) -> str | None:
    """Return why requests can't be served by pipelines of a class; None if they can."""
    if packages := missing_packages(kind):
        return f"{kind.__name__} needs {install_hint(packages)}"
    if not issubclass(kind, diffusers.DiffusionPipeline) or not inspect.isfunction(call_function(kind)):
        return f"{kind.__name__} is no pipeline that can be called"
    function = call_function(kind)
    fields = _output_fields(function)
    if fields and not _IMAGE_FIELDS & fields.keys():
        return f"{kind.__name__} generates {', '.join(list(fields)[:3])}, not images"
    parameters = inspect.signature(function).parameters
    needed = [name for name, part in parameters.items() if _is_needed(part) or name in _NEEDED]
    if needed:
        return f"{kind.__name__} needs {', '.join(needed)}, which requests can't give"
    return None


def call_function(kind: type) -> Any:
    """Return the function that a call of an instance runs, without decorators; None if there is none."""
    call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
    return None if call is None else inspect.unwrap(call)


def missing_packages(kind: type) -> list[str]:
    """Return the packages that the place holder of a class names as missing; empty for a class that is there."""
    names = getattr(kind, "_backends", None)
    if not isinstance(names, list) or issubclass(kind, diffusers.DiffusionPipeline):
        return []
    known = {**diffusers_packages.BACKENDS_MAPPING, **transformers.utils.import_utils.BACKENDS_MAPPING}
    return [_package(name) for name in names if name in known and not known[name][0]()]


def missing_package(error: BaseException) -> str | None:
    """Return the package whose absence caused an error; None if the error has another cause."""
    if isinstance(error, NameError):  # pipelines import optional packages only if they are there
        known = {*diffusers_packages.BACKENDS_MAPPING, *transformers.utils.import_utils.BACKENDS_MAPPING}
        return _package(error.name) if error.name is not None and error.name in known else None
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _package(error.name.partition(".")[0])
    if isinstance(error, ImportError) and (match := _REQUIRES.search(str(error))):
        return _package(match[1].lower())
    return None


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with the package to install if one is missing."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    package = missing_package(error)
    return text if package is None else f"{text} (needs {install_hint([package])})"


def install_hint(packages: list[str]) -> str:
    """Return the names of packages and the command that installs them."""
    names = " ".join(packages)
    noun = "package" if len(packages) == 1 else "packages"
    return f"the {noun} {', '.join(packages)}: run pip install {names}"


def _output_fields(function: Any) -> dict[str, Any]:
    """Return the fields of the output classes that a call uses; empty if it uses none, but calls a pipeline."""
    used = [function.__globals__.get(name) for name in function.__code__.co_names]
    outputs = [each for each in used if isinstance(each, type) and issubclass(each, BaseOutput)]
    dataclasses_used = [each for each in outputs if dataclasses.is_dataclass(each)]
    return {part.name: part for each in dataclasses_used for part in dataclasses.fields(each)}


def _is_needed(part: inspect.Parameter) -> bool:
    variadic = part.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return part.default is inspect.Parameter.empty and not variadic and part.name not in _GIVEN


def _package(name: str) -> str:
    return _PACKAGES.get(name, name)
