"""Where a model comes from: what `--model` says, read without loading anything."""

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
_RIGHT = (
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


Place = Path | HubModel
"""A diffusers folder, a single file with weights, or a model on the hub."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model: the name under which clients ask for it, and where it is."""

    name: str
    place: Place


def read_source(text: str) -> ModelSource:
    """Return what `[NAME=]SOURCE` stands for. Raises ValueError that says in a line what is wrong."""
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
    """Return the name that was given, or "", and the rest. A path that is there may have a = in it."""
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
    raise ValueError(f"{text} is not built in; built in are: {known}")


def _exists(text: str) -> bool:
    return os.path.exists(text)  # noqa: PTH110 - a Path raises for a text that is too long


def _check_path(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(
            f"{str(path)!r}: a pickle can run any code when it is read, and is not loaded; convert it to"
            f" {WEIGHTS_SUFFIX}"
        )
    if not _exists(str(path)):
        raise ValueError(f"there is no {str(path)!r}; {_RIGHT}")
    if path.is_file():
        if path.suffix != WEIGHTS_SUFFIX:
            raise ValueError(f"{str(path)!r} is no {WEIGHTS_SUFFIX} file; {_RIGHT}")
    elif not (path / INDEX_FILE).is_file():
        raise ValueError(f"the folder {str(path)!r} has no {INDEX_FILE}; {_RIGHT}")
