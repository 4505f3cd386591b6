"""The description of a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card, or a MIG instance of one: the unit that one process uses.

    `number`: position among all GPUs of the host. `index`: index of the card, as `nvidia-smi` shows it. `uuid`:
    None if the driver does not report it. `instance`, `card_uuid`: number and card of a MIG instance.
    """

    number: int
    index: int
    name: str
    uuid: str | None = None
    instance: int | None = None
    card_uuid: str | None = None

    @property
    def label(self) -> str:
        """A name that is unique on the host, such as `0` or `0-mig1`."""
        return str(self.index) if self.instance is None else f"{self.index}-mig{self.instance}"

    @property
    def cuda_id(self) -> str:
        """The value for `CUDA_VISIBLE_DEVICES`, with `CUDA_DEVICE_ORDER=PCI_BUS_ID`."""
        return str(self.index) if self.uuid is None else self.uuid


def format_gpus(gpus: Iterable[Gpu]) -> str:
    """Return the GPUs for an error message, each with its number for `--gpu`; `none` if there are none."""
    return "; ".join(_format_gpu(number, gpu) for number, gpu in enumerate(gpus)) or "none"


def _format_gpu(number: int, gpu: Gpu) -> str:
    facts = [gpu.name, gpu.uuid or ""]
    if gpu.label != str(number):
        facts.append(f"GPU {gpu.label} of this host")
    return f"{number} ({', '.join(fact for fact in facts if fact)})"
