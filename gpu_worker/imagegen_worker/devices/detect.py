"""Detection of this host's GPUs through NVML, else the files of the driver, else torch in a child process."""

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
TORCH_TIMEOUT_SECONDS = 120.0
_DEVICE_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "kfd", "dxg")
_TORCH_SCRIPT = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.get_device_name(index) for index in range(count)]))
"""

_log = logging.getLogger(__name__)


def detect_gpus(
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
            log(_log, logging.DEBUG, "NVML failed", error=error)
    if driver_folder.is_dir():
        return driver_gpus(driver_folder)
    # Importing torch takes seconds: only if there is a device that torch alone may support.
    if any(any(device_folder.glob(pattern)) for pattern in _DEVICE_FILES):
        return torch_gpus(python)
    return []


def driver_gpus(folder: Path) -> list[Gpu]:
    """Return the GPUs listed in the driver's folder, which has a subfolder for each PCI address."""
    gpus: list[Gpu] = []
    for card in sorted(folder.glob("*/information")):
        facts = dict(re.findall(r"^([^:\n]+?)\s*:\s*(\S.*?)\s*$", card.read_text(), re.MULTILINE))
        uuid = facts.get("GPU UUID", "")
        known = (
            uuid if uuid.startswith("GPU-") and "?" not in uuid else None
        )  # with question marks before the first use
        index = len(gpus)
        gpus.append(Gpu(number=index, index=index, name=facts.get("Model", "NVIDIA GPU"), uuid=known))
    return gpus


def torch_gpus(python: str) -> list[Gpu]:
    """Return the GPUs that torch finds in a child process, without UUIDs; none if the process fails."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [python, "-P", "-c", _TORCH_SCRIPT],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_SECONDS,
            check=True,
            env={**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        names = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log(_log, logging.WARNING, "GPU detection by torch failed", error=error)
        return []
    return [Gpu(number=index, index=index, name=name) for index, name in enumerate(names)]
