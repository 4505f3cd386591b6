"""LoRAs from a folder: loaded on first use, kept in a small LRU, and activated before the forwards that need them.

Diffusers loads them and wraps layers of the models; while no adapter is active, wrapped layers run the same
operations as before.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from imagegen_common.logs import log
from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.limits import MAX_LORAS
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.lora_files import LoraFiles, count_layers

MAX_LOADED = MAX_LORAS
"""Maximum number of LoRAs on the device: as many as one request may name. The least recently used are unloaded."""
_log = logging.getLogger(__name__)

LoraScales = tuple[tuple[str, float], ...]
"""Names and scales of LoRAs."""


class Adapters:
    """The LoRAs of one pipeline. Raises `StartError` if the pipeline supports none, or peft is not installed."""

    def __init__(self, pipeline: Any, folder: Path, max_loaded: int = MAX_LOADED) -> None:
        if not hasattr(pipeline, "load_lora_weights"):
            raise StartError(f"--lora-folder: {type(pipeline).__name__} does not support LoRAs")
        try:
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ModuleNotFoundError as error:
            raise StartError(f"--lora-folder: {error}; install imagegen-fleet[worker]") from error
        self._kind: type[Any] = BaseTunerLayer
        self._pipeline = pipeline
        self._folder = folder
        self._files = LoraFiles(folder)
        self._max_loaded = max_loaded
        self._slots: OrderedDict[str, str] = OrderedDict()
        """Adapter name in diffusers by version of a LoRA, for the loaded ones; the most recently used is last."""
        self._warnings: dict[str, str] = {}
        """Warnings about loaded LoRAs by version."""
        self._layers: list[Any] = []
        self._active: LoraScales | None = ()
        self.revision = 0
        """Number of changes to the layers of the models."""

    def names(self) -> list[str]:
        """Return the names of the LoRAs in the folder."""
        return self._files.names()

    def load(self, loras: LoraScales) -> LoraScales:
        """Load LoRAs onto the device; return them with the versions of their files in place of their names.

        A file that is replaced later has another version. Accepts versions, too. Raises `InvalidRequestError`,
        `DeviceMemoryError` and `DeviceLostError`.
        """
        versions = tuple((self._files.version(name), scale) for name, scale in loras)
        keep = [version for version, _ in versions]
        for version in keep:
            if version not in self._slots:
                self._load(version, keep)
            self._slots.move_to_end(version)
        return versions

    def warnings(self, loras: LoraScales) -> tuple[str, ...]:
        """Return the warnings about loaded LoRAs that fit the model only in part."""
        versions = [self._files.version(name) for name, _ in loras]
        return tuple(self._warnings[version] for version in versions if version in self._warnings)

    def activate(self, loras: LoraScales, *, fresh: bool = False) -> None:
        """Use exactly these LoRAs from the next forward on. Raises as `load` does.

        `fresh`: a pipeline call may have changed scales since the last activation.
        """
        if loras == self._active and not fresh:
            return
        slots = [self._slots[version] for version, _ in self.load(loras)]
        for layer in self._layers:
            layer.enable_adapters(bool(loras))
            if loras:
                layer.set_adapter(slots)
                for slot, (_, scale) in zip(slots, loras, strict=True):
                    layer.set_scale(slot, scale)
        self._active = loras

    def _load(self, version: str, keep: Iterable[str]) -> None:
        name, path = self._files.path(version)
        count = count_layers(name, path)
        while len(self._slots) >= self._max_loaded:
            self._unload(next(loaded for loaded in self._slots if loaded not in keep))
        slots = (
            f"lora{index}" for index in range(self._max_loaded)
        )  # file names may have dots, adapter names not
        slot = next(slot for slot in slots if slot not in self._slots.values())
        self._active = None  # diffusers activates the LoRA that it loads
        try:
            with translated_errors(), warnings.catch_warnings(action="ignore"):  # about several adapters
                self._pipeline.load_lora_weights(
                    str(self._folder),
                    weight_name=path.name,
                    adapter_name=slot,
                    use_safetensors=True,
                    local_files_only=True,
                )
            if not any(slot in slots for slots in self._pipeline.get_list_adapters().values()):
                raise ValueError("it has no weights for this model")
        except Exception as error:
            self._remove(slot)
            if isinstance(error, DeviceMemoryError | DeviceLostError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidRequestError(f"loras: {name!r} can't be used with this model: {reason}") from error
        finally:
            self._find_layers()
        self._slots[version] = slot
        used = sum(slot in getattr(layer, "scaling", ()) for layer in self._layers)
        if used < count:
            self._warnings[version] = f"loras: {name!r} has {count} layers, of which {used} match this model"
            log(_log, logging.WARNING, "LoRA matches in part", lora=name, layers=count, used=used)
        _log.info("LoRA loaded: %s", name)

    def _unload(self, version: str) -> None:
        self._warnings.pop(version, None)
        self._remove(self._slots.pop(version))
        self._find_layers()

    def _remove(self, slot: str) -> None:
        """Remove an adapter, even one that was loaded only in part."""
        self._active = None
        self._find_layers()
        for layer in self._layers:
            layer.set_adapter([])  # peft would activate another adapter instead of a deleted one
        for component, slots in self._pipeline.get_list_adapters().items():
            if slot in slots:
                model = getattr(self._pipeline, component)
                (model.delete_adapters if hasattr(model, "delete_adapters") else model.delete_adapter)(slot)

    def _find_layers(self) -> None:
        self.revision += 1
        models = [model for model in self._pipeline.components.values() if isinstance(model, torch.nn.Module)]
        layers = {
            id(layer): layer for model in models for layer in model.modules() if isinstance(layer, self._kind)
        }
        self._layers = list(layers.values())
        for layer in self._layers:
            layer.eval()
