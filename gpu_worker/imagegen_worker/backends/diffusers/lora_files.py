"""Files of LoRAs: their versions, and checks of their content before they are loaded."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from imagegen_protocol.errors import InvalidRequestError

_SUFFIX = ".safetensors"
_MARK = "\0"
"""Separates name and version; names contain no control characters."""
_LAYER = re.compile(r"[._]lora[._](A|down|linear_layer\.down|embedding_A)\b|\.lora\.down\b")
"""In the name of one tensor of each layer of a LoRA, in the formats that diffusers reads."""
_DORA = "dora_scale"
"""In the names of tensors of a weight-decomposed LoRA, which diffusers drops."""


class LoraFiles:
    """The LoRAs in a folder. A version is the name of a LoRA with the time and the size of its file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of the LoRAs."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}"))

    def version(self, name: str) -> str:
        """Return the present version of a LoRA, or a version unchanged. Raises `InvalidRequestError`."""
        if _MARK in name:
            return name
        try:
            status = (self._folder / f"{name}{_SUFFIX}").stat()
        except OSError as error:
            known = ", ".join(self.names()) or "none"
            raise InvalidRequestError(f"loras: there is no {name!r} on this worker; there are: {known}") from error
        return f"{name}{_MARK}{status.st_mtime_ns}-{status.st_size}"

    def path(self, version: str) -> tuple[str, Path]:
        """Return the name and the file of a version. Raises `InvalidRequestError` if the file was replaced."""
        name = version.partition(_MARK)[0]
        if self.version(name) != version:
            raise InvalidRequestError(
                f"loras: the file of {name!r} was replaced meanwhile; send the request again"
            )
        return name, self._folder / f"{name}{_SUFFIX}"


def count_layers(name: str, path: Path) -> int:
    """Return the number of layers of a LoRA. Raises `InvalidRequestError` for a file that can't be used."""
    count = 0
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                if _DORA in key:
                    raise InvalidRequestError(f"loras: {name!r} can't be used: it is a DoRA ({key})")
                if not torch.isfinite(file.get_tensor(key)).all():
                    raise InvalidRequestError(
                        f"loras: {name!r} can't be used: it has values that are not finite ({key})"
                    )
                count += _LAYER.search(key) is not None
    except (SafetensorError, OSError) as error:
        raise InvalidRequestError(f"loras: {name!r} can't be used: not a complete {_SUFFIX} file") from error
    return count
