"""Selection of GPUs: `CUDA_VISIBLE_DEVICES` as CUDA reads it, then `--gpu` among the visible GPUs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagegen_common.addresses import ConfigError
from imagegen_worker.devices.gpu import Gpu, format_gpus

_UUID_PREFIXES = ("GPU-", "MIG-")


class GpuMissingError(ConfigError):
    """A selected GPU does not exist; it may come back."""


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """The GPUs of `CUDA_VISIBLE_DEVICES`, in its order; `problem` describes its invalid entry, or is empty."""

    gpus: tuple[Gpu, ...]
    problem: str = ""


def visible_gpus(gpus: Sequence[Gpu], text: str | None) -> VisibleGpus:
    """Return the GPUs that a CUDA program would see.

    As in CUDA, an invalid entry hides itself and all entries after it, a repeated one hides every GPU, the first
    entry decides whether numbers or UUIDs are expected, and a UUID may be abbreviated while it is unique. A card
    in MIG mode stands for its first instance. Numbers follow the PCI bus, as those of `nvidia-smi`.
    """
    if text is None:
        return VisibleGpus(tuple(gpus))
    if not text.strip():
        return VisibleGpus((), "it is empty")
    find = _by_uuid(gpus, text[:4]) if text.startswith(_UUID_PREFIXES) else _by_number(gpus)
    found: list[Gpu] = []
    for entry in text.split(","):
        gpu = find(entry)
        if gpu is None:
            return VisibleGpus(tuple(found), f"{entry!r} is not a GPU, which hides it and all entries after it")
        if gpu in found:
            return VisibleGpus((), f"{entry!r} is listed twice, which hides every GPU")
        found.append(gpu)
    return VisibleGpus(tuple(found))


def select_gpus(gpus: Sequence[Gpu], text: str | None) -> tuple[Gpu, ...]:
    """Return the visible GPUs that `--gpu` lists by number or UUID; all of them for None.

    Raises `GpuMissingError`, which lists the visible GPUs, and `ConfigError` for invalid or repeated entries.
    """
    if text is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in parse_selection(text):
        gpu = _find(gpus, entry)
        if gpu is None:
            raise GpuMissingError(f"--gpu {text}: GPU {entry} not found; GPUs found: {format_gpus(gpus)}")
        if gpu in found:
            raise ConfigError(f"--gpu {text}: {entry} is listed twice")
        found.append(gpu)
    return tuple(found)


def parse_selection(text: str) -> list[str]:
    """Split the value of `--gpu`. Raises `ConfigError` for entries that are neither numbers nor UUIDs."""
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        if not re.fullmatch(r"[0-9]{1,4}|(GPU|MIG)-[\w/-]+", entry):
            raise ConfigError(f"--gpu must be numbers or UUIDs separated by commas, such as 0,2, got {text!r}")
    return entries


def _by_number(gpus: Sequence[Gpu]) -> Callable[[str], Gpu | None]:
    cards: dict[int, Gpu] = {}
    for gpu in gpus:
        cards.setdefault(gpu.index, gpu)
    order = list(cards.values())

    def find(entry: str) -> Gpu | None:
        digits = re.match(r"\s*\+?([0-9]+)", entry)  # CUDA ignores the rest: `1gpu` is 1
        return order[int(digits[1])] if digits and int(digits[1]) < len(order) else None

    return find


def _by_uuid(gpus: Sequence[Gpu], prefix: str) -> Callable[[str], Gpu | None]:
    def find(entry: str) -> Gpu | None:
        if not entry.startswith(prefix):
            return None
        cards: dict[str, Gpu] = {}
        for gpu in gpus:
            if gpu.card_uuid is not None and gpu.card_uuid.startswith(entry):
                cards.setdefault(gpu.card_uuid, gpu)
        found = [*_match_uuid(gpus, entry), *cards.values()]
        return found[0] if len(found) == 1 else None

    return find


def _find(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    found = _match_uuid(gpus, entry)
    return found[0] if len(found) == 1 else None


def _match_uuid(gpus: Sequence[Gpu], prefix: str) -> list[Gpu]:
    """Return the GPUs whose UUID starts with `prefix`, or only the one whose UUID equals it."""
    found = [gpu for gpu in gpus if gpu.uuid is not None and gpu.uuid.startswith(prefix)]
    return [gpu for gpu in found if gpu.uuid == prefix] or found
