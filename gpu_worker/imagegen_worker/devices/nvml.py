"""NVML, the driver's own library, through `nvidia-ml-py`: counted here, read in `readings.py`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from imagegen_common.logs import log
from imagegen_worker.devices.gpu import Gpu

Nvml = Any
"""The module `pynvml`, or what acts like it."""
_log = logging.getLogger(__name__)


def nvml_module() -> Nvml | None:
    """Return `pynvml`; None where it is not installed."""
    try:
        return import_module("pynvml")
    except ModuleNotFoundError:
        return None


@contextmanager
def opened(nvml: Nvml) -> Iterator[None]:
    """Initialise NVML for a while. Raises `nvml.NVMLError` without a driver."""
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def list_gpus(nvml: Nvml) -> list[Gpu]:
    """Return every GPU in the order of the PCI bus; a card that MIG has split gives its instances instead.

    A card that does not answer, having fallen off the bus, is left out. Raises `nvml.NVMLError` without a driver.
    """
    gpus: list[Gpu] = []
    with opened(nvml):
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                gpus += _card(nvml, index, len(gpus))
            except nvml.NVMLError as error:
                log(_log, logging.WARNING, "a GPU does not answer, and is left out", gpu=index, error=error)
    return gpus


def _card(nvml: Nvml, index: int, number: int) -> list[Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    if not _is_split(nvml, handle):
        return [Gpu(number=number, index=index, name=name, uuid=uuid)]
    instances: list[Gpu] = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # not every place is taken
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            instance = Gpu(
                number=number + len(instances),
                index=index,
                name=nvml.nvmlDeviceGetName(part),
                uuid=nvml.nvmlDeviceGetUUID(part),
                instance=place,
                card_uuid=uuid,
            )
            instances.append(instance)
    return instances


def _is_split(nvml: Nvml, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cards know no MIG
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)
