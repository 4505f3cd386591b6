"""Find the GPUs of this host: NVML knows best, then the driver's own files, then torch in a process of its own."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

from imagegen_common.logs import log
from imagegen_worker.devices.gpu import Gpu
from imagegen_worker.devices.nvml import Nvml, list_gpus, nvml_module

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
DEVICE_FOLDER = Path("/dev")
TORCH_SECONDS = 120.0
_DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "kfd", "dxg")
_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.get_device_name(index) for index in range(count)]))
"""

_log = logging.getLogger(__name__)


def detect(
    nvml: Nvml | None = None,
    *,
    driver_folder: Path = DRIVER_FOLDER,
    device_folder: Path = DEVICE_FOLDER,
    python: str = sys.executable,
) -> list[Gpu]:
    """Return every GPU of this host, whatever `CUDA_VISIBLE_DEVICES` says. `nvml` is the module `pynvml`."""
    nvml = nvml_module() if nvml is None else nvml
    if nvml is not None:
        try:
            return list_gpus(nvml)
        except nvml.NVMLError as error:
            log(_log, logging.DEBUG, "NVML can't be had", error=error)
    if driver_folder.is_dir():
        return driver_gpus(driver_folder)
    # Importing torch takes seconds: only where there is a device that it alone may know.
    if any(any(device_folder.glob(pattern)) for pattern in _DEVICE_FILES):
        return torch_gpus(python)
    return []


def driver_gpus(folder: Path) -> list[Gpu]:
    """Return the GPUs of the driver's files, one folder for each place on the PCI bus."""
    gpus: list[Gpu] = []
    for card in sorted(folder.glob("*/information")):
        facts = dict(re.findall(r"^([^:\n]+?)\s*:\s*(\S.*?)\s*$", card.read_text(), re.MULTILINE))
        uuid = facts.get("GPU UUID", "")
        known = uuid if uuid.startswith("GPU-") and "?" not in uuid else None  # question marks: not started yet
        index = len(gpus)
        gpus.append(Gpu(number=index, index=index, name=facts.get("Model", "NVIDIA GPU"), uuid=known))
    return gpus


def torch_gpus(python: str) -> list[Gpu]:
    """Return what torch sees, without UUIDs, asked in a process of its own; nothing if it can't be asked."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [python, "-P", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            check=True,
            env={**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        names = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log(_log, logging.WARNING, "torch could not be asked for GPUs", error=error)
        return []
    return [Gpu(number=index, index=index, name=name) for index, name in enumerate(names)]
