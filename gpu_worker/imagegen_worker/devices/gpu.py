"""What is known of a GPU before anything runs on it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card, or one instance of a card that MIG has split: what one process can use.

    `number`: its place among all of this host. `index`: the card's own, as `nvidia-smi` shows it. `uuid`: None
    where no driver tells it. `instance` and `card_uuid`: of MIG.
    """

    number: int
    index: int
    name: str
    uuid: str | None = None
    instance: int | None = None
    card_uuid: str | None = None

    @property
    def label(self) -> str:
        """A short name that is this GPU's alone on its host: `0`, or `0-mig1`."""
        return str(self.index) if self.instance is None else f"{self.index}-mig{self.instance}"

    @property
    def cuda_id(self) -> str:
        """What `CUDA_VISIBLE_DEVICES` calls it, in the order of the PCI bus."""
        return str(self.index) if self.uuid is None else self.uuid


def listing(gpus: Iterable[Gpu]) -> str:
    """Return the GPUs as an error shows them, each under the number that `--gpu` takes; or `none`."""
    return "; ".join(_line(number, gpu) for number, gpu in enumerate(gpus)) or "none"


def _line(number: int, gpu: Gpu) -> str:
    about = [gpu.name, gpu.uuid or ""]
    if gpu.label != str(number):
        about.append(f"GPU {gpu.label} of this host")
    return f"{number} ({', '.join(word for word in about if word)})"
