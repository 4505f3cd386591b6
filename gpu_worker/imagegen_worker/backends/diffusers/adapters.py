"""LoRAs from a folder: loaded on first use, kept in a small LRU, and activated before the forwards that need them.

Diffusers loads them and wraps layers of the models; while no adapter is active, wrapped layers run the same
operations as before.
"""

import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from imagegen_common.logs import log
from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.limits import MAX_LORAS
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.lora_files import LoraFiles, count_layers
from imagegen_worker.engines.continuous.calls import wait_until

MAX_LOADED = MAX_LORAS
"""Maximum number of LoRAs on the device: as many as one request may name. The least recently used are unloaded."""
_BLOCK_BYTES = 1 << 20

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
        self._layers_of: dict[str, list[Any]] = {}
        """The layers that an adapter changes, by its name in diffusers."""
        self._enabled: dict[int, Any] = {}
        """The layers, by id, in which adapters may be active."""
        self._used: Counter[str] = Counter()
        """Running calls by version of a LoRA: these are not unloaded."""
        self._reads: dict[str, Future[None]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lora")
        self._active: LoraScales | None = ()
        self.revision = 0
        """Number of changes to the layers of the models."""

    def names(self) -> list[str]:
        """Return the names of the LoRAs in the folder."""
        return self._files.names()

    def close(self) -> None:
        """End the thread that reads files."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def warnings(self, loras: LoraScales) -> tuple[str, ...]:
        """Return the warnings about loaded LoRAs that fit the model only in part."""
        versions = [self._files.version(name) for name, _ in loras]
        return tuple(self._warnings[version] for version in versions if version in self._warnings)

    @contextmanager
    def reserved(self, loras: LoraScales) -> Iterator[LoraScales]:
        """Keep LoRAs loaded during the `with` block, in which a call uses them; yield what `load` returns.

        The task waits, while others run, until their files were read and there is room beside the LoRAs of others.
        Raises as `load` does.
        """
        scales = self._versions(loras)
        versions = [version for version, _ in scales]
        for version in versions:
            if version not in self._slots and version not in self._reads:
                self._reads[version] = self._reader.submit(_read, self._files.path(version)[1])
        wait_until(lambda: self._may_load(versions))
        self._used.update(versions)
        try:
            yield self.load(scales)
        finally:
            self._used -= Counter(versions)

    def _may_load(self, versions: Iterable[str]) -> bool:
        """Return whether these LoRAs can be loaded without waiting and without unloading one that is in use."""
        if any(version in self._reads and not self._reads[version].done() for version in versions):
            return False
        return len(self._used.keys() | set(versions)) <= self._max_loaded

    def load(self, loras: LoraScales) -> LoraScales:
        """Load LoRAs onto the device; return them with the versions of their files in place of their names.

        A file that is replaced later has another version. Accepts versions, too. Raises `InvalidRequestError`,
        `DeviceMemoryError` and `DeviceLostError`.
        """
        scales = self._versions(loras)
        keep = [version for version, _ in scales]
        for version in keep:
            if version not in self._slots:
                self._load(version, keep)
            self._slots.move_to_end(version)
        return scales

    def _versions(self, loras: LoraScales) -> LoraScales:
        return tuple((self._files.version(name), scale) for name, scale in loras)

    def activate(self, loras: LoraScales, *, fresh: bool = False) -> None:
        """Use exactly these LoRAs from the next forward on. Raises as `load` does.

        `fresh`: a pipeline call may have changed scales since the last activation.
        """
        if loras == self._active and not fresh:
            return
        scales = {self._slots[version]: scale for version, scale in self.load(loras)}
        layers = {id(layer): layer for slot in scales for layer in self._layers_of[slot]}
        for key, layer in self._enabled.items():
            if key not in layers:
                layer.enable_adapters(False)
        for layer in layers.values():
            own = [slot for slot in scales if slot in layer.scaling]
            if layer.disable_adapters:
                layer.enable_adapters(True)
            if layer.active_adapters != own:
                layer.set_adapter(own)
            for slot in own:
                layer.set_scale(slot, scales[slot])
        self._enabled = layers
        self._active = loras

    def _load(self, version: str, keep: Iterable[str]) -> None:
        if (reading := self._reads.pop(version, None)) is not None:
            reading.exception()  # wait; an error is raised again below
        name, path = self._files.path(version)
        count = count_layers(name, path)
        while len(self._slots) >= self._max_loaded:
            self._unload(next(each for each in self._slots if each not in keep and not self._used[each]))
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
            self._find_layers()
            if isinstance(error, DeviceMemoryError | DeviceLostError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidRequestError(f"loras: {name!r} can't be used with this model: {reason}") from error
        self._slots[version] = slot
        self._find_layers()
        used = len(self._layers_of[slot])
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
        self._enabled = layers
        self._layers_of = {
            slot: [layer for layer in self._layers if slot in layer.scaling] for slot in self._slots.values()
        }
        for layer in self._layers:
            layer.eval()


def _read(path: Path) -> None:
    """Read a file, so that the system has it in memory when diffusers reads it on the device thread."""
    with path.open("rb") as file:
        while file.read(_BLOCK_BYTES):
            continue
