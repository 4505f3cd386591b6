"""From a model's source to a local folder: from the hub's cache if it is there whole, else from the hub."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
from huggingface_hub import constants, snapshot_download

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.checking import check_folder, in_a_line, read_index
from imagegen_worker.models.sources import HubModel, ModelLocation

USUAL_VARIANT = "fp16"
_CONFIG_FILES = ("*.json", "*.txt", "*.model", "**/*.json", "**/*.txt", "**/*.model")

T = TypeVar("T")


def find_model(
    place: ModelLocation, variant: str | None, *, without: Collection[str] = ()
) -> tuple[Path, str | None]:
    """Return the local folder of a model, and which variant of its weights is to be loaded.

    `without`: parts that come from elsewhere. The hub is asked for what is not in its cache, unless HF_HUB_OFFLINE
    is set. Raises `StartError` for what is not there, or can't be a pipeline.
    """
    if isinstance(place, Path):
        return place, check_folder(place, variant, without=without)
    asks = [
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
    return _find(place, asks, partial(check_folder, variant=variant, without=without))


def find_config(place: ModelLocation) -> Path:
    """Return the local folder with the configuration of a pipeline; found as `find_model` does."""
    if isinstance(place, Path):
        read_index(place)
        return place
    ask = partial(snapshot_download, place.id, revision=place.revision, allow_patterns=list(_CONFIG_FILES))
    return _find(place, [ask], read_index)[0]


def _find(model: HubModel, asks: Sequence[Callable[..., Any]], check: Callable[[Path], T]) -> tuple[Path, T]:
    """Return the first folder that one of these gives and that passes the check; first the cache is looked at."""
    reasons = []
    for offline in (True, False):
        if not offline and constants.is_offline_mode():
            reasons.append("the hub is not asked (HF_HUB_OFFLINE)")
            break
        for ask in asks:
            try:
                folder = Path(ask(local_files_only=offline))
                return folder, check(folder)
            except StartError as error:
                reasons.append(str(error))
            except Exception as error:  # noqa: BLE001 - of many kinds, all of them about what is not to be had
                if not offline:
                    reasons.append(f"the hub did not give it: {in_a_line(error.__cause__ or error)}")
    said = "; ".join(dict.fromkeys(reasons))
    raise StartError(
        f"{model}: there is no such folder here, and no whole copy of a model of this id in"
        f" {constants.HF_HUB_CACHE}; {said}"
    )
