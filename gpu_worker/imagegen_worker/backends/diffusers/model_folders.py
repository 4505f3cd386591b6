"""Local folders of models: from the cache of the model hub if complete, else downloaded."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
from huggingface_hub import constants, file_exists, snapshot_download, try_to_load_from_cache

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.validation import (
    MODULAR,
    MODULAR_INDEX_FILE,
    check_folder,
    one_line,
    read_index,
)
from imagegen_worker.models.sources import INDEX_FILE, HubModel, ModelLocation

USUAL_VARIANT = "fp16"
_CONFIG_FILES = ("*.json", "*.txt", "*.model", "**/*.json", "**/*.txt", "**/*.model")

T = TypeVar("T")


def find_model(
    place: ModelLocation, variant: str | None, *, without: Collection[str] = ()
) -> tuple[Path, str | None]:
    """Return the local folder of a model and the variant of its weights to load.

    `without`: components that come from elsewhere. Files that are not in the cache are downloaded, unless
    HF_HUB_OFFLINE is set. Raises `StartError` if the model is not found or is not a complete pipeline.
    """
    if isinstance(place, Path):
        return place, check_folder(place, variant, without=without)
    downloads = [
        partial(
            diffusers.DiffusionPipeline.download,
            place.id,
            revision=place.revision,
            use_safetensors=True,
            variant=each,
            **dict.fromkeys(without),
        )
        for each in ((variant,) if variant else (None, USUAL_VARIANT))
    ]
    return _find(place, downloads, partial(check_folder, variant=variant, without=without))


def find_config(place: ModelLocation) -> Path:
    """Return the local folder with the configuration of a pipeline; see `find_model`."""
    if isinstance(place, Path):
        read_index(place)
        return place
    download = partial(snapshot_download, place.id, revision=place.revision, allow_patterns=list(_CONFIG_FILES))
    return _find(place, [download], read_index)[0]


def _find(model: HubModel, downloads: Sequence[Callable[..., Any]], check: Callable[[Path], T]) -> tuple[Path, T]:
    """Return the first downloaded folder that passes the check, and its result; the cache is tried first."""
    reasons = []
    for offline in (True, False):
        if not offline and constants.is_offline_mode():
            reasons.append("downloads are disabled (HF_HUB_OFFLINE)")
            break
        for download in downloads:
            try:
                folder = Path(download(local_files_only=offline))
                return folder, check(folder)
            except StartError as error:
                reasons.append(str(error))
            except Exception as error:  # noqa: BLE001 - of many types, all for models that can't be downloaded
                if not offline:
                    reasons.append(f"the download failed: {one_line(error.__cause__ or error)}")
    if _is_modular(model):
        raise StartError(f"{model}: {MODULAR}")
    reason = "; ".join(dict.fromkeys(reasons))
    raise StartError(
        f"{model}: no such folder, and no complete copy of this model in {constants.HF_HUB_CACHE}; {reason}"
    )


def _is_modular(model: HubModel) -> bool:
    """Return whether the cache or the hub shows that a model has the index of modular pipelines only."""
    return _has_file(model, MODULAR_INDEX_FILE) and not _has_file(model, INDEX_FILE)


def _has_file(model: HubModel, name: str) -> bool:
    if isinstance(try_to_load_from_cache(model.id, name, revision=model.revision), str):
        return True
    if constants.is_offline_mode():
        return False
    try:
        return file_exists(model.id, name, revision=model.revision)
    except Exception:  # noqa: BLE001 - of many types, all for models that can't be found
        return False
