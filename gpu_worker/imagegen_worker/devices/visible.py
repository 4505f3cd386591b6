"""Which of the GPUs may be used: `CUDA_VISIBLE_DEVICES` as CUDA reads it, then `--gpu` among what that leaves."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagegen_common.addresses import ConfigError
from imagegen_worker.devices.gpu import Gpu, listing

_UUID_PREFIXES = ("GPU-", "MIG-")


class GpuMissingError(ConfigError):
    """A GPU was asked for that is not there, or not now."""


@dataclass(frozen=True, slots=True)
class Visible:
    """What `CUDA_VISIBLE_DEVICES` leaves, in its order; `trouble` says what it names in vain, or is empty."""

    gpus: tuple[Gpu, ...]
    trouble: str = ""


def visible(gpus: Sequence[Gpu], text: str | None) -> Visible:
    """Return the GPUs that a CUDA program would see.

    As with CUDA, an entry that is not valid hides itself and all after it, one that is repeated hides everything,
    the first entry decides whether numbers or UUIDs are read, and a UUID may be cut as long as it is unique. A
    card that MIG has split stands for its first instance. Numbers follow the PCI bus, as those of `nvidia-smi`.
    """
    if text is None:
        return Visible(tuple(gpus))
    if not text.strip():
        return Visible((), "it is empty")
    find = _by_uuid(gpus, text[:4]) if text.startswith(_UUID_PREFIXES) else _by_number(gpus)
    found: list[Gpu] = []
    for entry in text.split(","):
        gpu = find(entry)
        if gpu is None:
            return Visible(tuple(found), f"{entry!r} is no GPU, which hides it and all after it")
        if gpu in found:
            return Visible((), f"{entry!r} is named twice, which hides everything")
        found.append(gpu)
    return Visible(tuple(found))


def chosen(gpus: Sequence[Gpu], text: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that `--gpu` names among the visible ones, by number or UUID; all of them for None.

    Raises `GpuMissingError`, which lists those there are, and `ConfigError`.
    """
    if text is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in entries(text):
        gpu = _named(gpus, entry)
        if gpu is None:
            raise GpuMissingError(f"--gpu {text}: there is no GPU {entry}; there are: {listing(gpus)}")
        if gpu in found:
            raise ConfigError(f"--gpu {text}: {entry} is named twice")
        found.append(gpu)
    return tuple(found)


def entries(text: str) -> list[str]:
    """Split what `--gpu` was given. Raises `ConfigError` for what is neither a number nor a UUID."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,4}|(GPU|MIG)-[\w/-]+", word):
            raise ConfigError(f"--gpu must be numbers or UUIDs with commas between, as 0,2, got {text!r}")
    return words


def _by_number(gpus: Sequence[Gpu]) -> Callable[[str], Gpu | None]:
    cards: dict[int, Gpu] = {}
    for gpu in gpus:
        cards.setdefault(gpu.index, gpu)
    order = list(cards.values())

    def find(entry: str) -> Gpu | None:
        digits = re.match(r"\s*\+?([0-9]+)", entry)  # CUDA reads no further: `1gpu` is 1
        return order[int(digits[1])] if digits and int(digits[1]) < len(order) else None

    return find


def _by_uuid(gpus: Sequence[Gpu], prefix: str) -> Callable[[str], Gpu | None]:
    def find(entry: str) -> Gpu | None:
        if not entry.startswith(prefix):
            return None
        split: dict[str, Gpu] = {}
        for gpu in gpus:
            if gpu.card_uuid is not None and gpu.card_uuid.startswith(entry):
                split.setdefault(gpu.card_uuid, gpu)
        found = [*_begun(gpus, entry), *split.values()]
        return found[0] if len(found) == 1 else None

    return find


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    found = _begun(gpus, entry)
    return found[0] if len(found) == 1 else None


def _begun(gpus: Sequence[Gpu], entry: str) -> list[Gpu]:
    """Return the GPUs whose UUID begins so; where one is just so, it alone."""
    begun = [gpu for gpu in gpus if gpu.uuid is not None and gpu.uuid.startswith(entry)]
    return [gpu for gpu in begun if gpu.uuid == entry] or begun
