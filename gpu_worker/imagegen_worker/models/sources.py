"""Parsing of `--model`: where a model comes from."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin"
INDEX_FILE = "model_index.json"
WEIGHTS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^\s@]+))?", re.ASCII)
_EXPECTED = (
    f"expected {BUILTIN}shapes, a diffusers folder with a {INDEX_FILE}, a {WEIGHTS_SUFFIX} file,"
    " or the id of a model on the hub (owner/name, owner/name@revision)"
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hugging Face hub. `revision`: a branch, tag or commit; None: the main branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


ModelLocation = Path | HubModel
"""A diffusers folder, a single file with weights, or a model on the hub."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The name and location of a model; clients use the name in requests."""

    name: str
    location: ModelLocation


def read_source(text: str) -> ModelSource:
    """Parse `[NAME=]SOURCE`. Raises ValueError with a message of one line."""
    name, text = _split_name(text)
    if text.startswith(BUILTIN):
        return ModelSource(name or text, _builtin(text))
    match = _HUB_ID.fullmatch(text)
    if match and not _exists(text) and not text.endswith((WEIGHTS_SUFFIX, *PICKLE_SUFFIXES)):
        return ModelSource(name or match["id"], HubModel(match["id"], match["revision"]))
    path = Path(text)
    _check_path(path)
    if path.is_file():
        return ModelSource(name or path.resolve().name.removesuffix(WEIGHTS_SUFFIX), path)
    return ModelSource(name or path.resolve().name, path)


def _split_name(text: str) -> tuple[str, str]:
    """Return the name, or "" without one, and the source. The path of an existing file may contain a =."""
    name, equals, rest = text.partition("=")
    if not equals or _exists(text):
        return "", text
    if not name or not rest:
        raise ValueError(f"{text!r}: expected NAME=SOURCE")
    return name, rest


def _builtin(text: str) -> Path:
    folder = BUILTIN_FOLDER / text.removeprefix(BUILTIN)
    present = sorted(found.parent.name for found in BUILTIN_FOLDER.glob(f"*/{INDEX_FILE}"))
    if folder.name in present and folder.parent == BUILTIN_FOLDER:
        return folder
    known = ", ".join(BUILTIN + name for name in present) or "none"
    raise ValueError(f"{text} is not a built-in model; built-in models: {known}")


def _exists(text: str) -> bool:
    return os.path.exists(text)  # noqa: PTH110 - a Path raises if the text is too long


def _check_path(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(
            f"{str(path)!r}: pickle files are not loaded, because they can execute code; convert it to"
            f" {WEIGHTS_SUFFIX}"
        )
    if not _exists(str(path)):
        raise ValueError(f"{str(path)!r} does not exist; {_EXPECTED}")
    if path.is_file():
        if path.suffix != WEIGHTS_SUFFIX:
            raise ValueError(f"{str(path)!r} is not a {WEIGHTS_SUFFIX} file; {_EXPECTED}")
    elif not (path / INDEX_FILE).is_file():
        raise ValueError(f"the folder {str(path)!r} has no {INDEX_FILE}; {_EXPECTED}")
