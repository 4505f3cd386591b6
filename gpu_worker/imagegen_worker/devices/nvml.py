"""List of GPUs from NVML, the library of the driver, through `nvidia-ml-py`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from imagegen_common.logs import log
from imagegen_worker.devices.gpu import Gpu

Nvml = Any
"""The module `pynvml`, or an object with the same functions."""
_log = logging.getLogger(__name__)


def nvml_module() -> Nvml | None:
    """Return `pynvml`, or None if it is not installed."""
    try:
        return import_module("pynvml")
    except ModuleNotFoundError:
        return None


@contextmanager
def opened(nvml: Nvml) -> Iterator[None]:
    """Initialise NVML, and shut it down at the end. Raises `nvml.NVMLError` without a driver."""
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def list_gpus(nvml: Nvml) -> list[Gpu]:
    """Return every GPU in the order of the PCI bus; a card in MIG mode is replaced by its instances.

    A card that does not answer, such as one that fell off the bus, is skipped. Raises `nvml.NVMLError` without a
    driver.
    """
    gpus: list[Gpu] = []
    with opened(nvml):
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                gpus += _card(nvml, index, len(gpus))
            except nvml.NVMLError as error:
                log(_log, logging.WARNING, "GPU did not answer, skipped", gpu=index, error=error)
    return gpus


def _card(nvml: Nvml, index: int, number: int) -> list[Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    if not _is_mig(nvml, handle):
        return [Gpu(number=number, index=index, name=name, uuid=uuid)]
    instances: list[Gpu] = []
    for instance in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # not every instance exists
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, instance)
            gpu = Gpu(
                number=number + len(instances),
                index=index,
                name=nvml.nvmlDeviceGetName(mig),
                uuid=nvml.nvmlDeviceGetUUID(mig),
                instance=instance,
                card_uuid=uuid,
            )
            instances.append(gpu)
    return instances


def _is_mig(nvml: Nvml, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cards do not support MIG
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)
