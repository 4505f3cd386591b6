"""What NVML and torch say of the same cards, and a worker that finds its own."""

import json
import os
import subprocess
import sys

import pytest

from imagegen_client import Client
from imagegen_worker.devices.detect import DRIVER_FOLDER, detect_gpus, driver_gpus, torch_gpus
from imagegen_worker.devices.readings import GpuMonitor
from imagegen_worker.devices.selection import visible_gpus
from tools.fleet import Fleet

pytestmark = pytest.mark.gpu

ASK = """
import json, torch
cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([(card.name, f"GPU-{card.uuid}") for card in cards]))
"""


def torch_sees(**environment):
    """Name and UUID of each device, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **environment},
    )
    return [tuple(card) for card in json.loads(done.stdout)]


def whole():
    """The cards that MIG has not split."""
    gpus = detect_gpus()
    if any(gpu.instance is not None for gpu in gpus):
        pytest.skip("a card is split by MIG")
    return gpus


def test_nvml_lists_what_torch_sees():
    gpus = whole()
    every = ",".join(str(gpu.index) for gpu in gpus)
    assert [(gpu.name, gpu.uuid) for gpu in gpus] == torch_sees(CUDA_VISIBLE_DEVICES=every)
    assert [gpu.name for gpu in torch_gpus(sys.executable)] == [gpu.name for gpu in gpus]


def test_the_drivers_files_agree_with_nvml():
    if not DRIVER_FOLDER.is_dir():
        pytest.skip("the driver's files can't be seen from here")
    assert [gpu.uuid for gpu in driver_gpus(DRIVER_FOLDER)] == [gpu.uuid for gpu in whole()]


def test_each_card_can_be_had_alone():
    for gpu in whole():
        assert torch_sees(CUDA_VISIBLE_DEVICES=gpu.cuda_id) == [(gpu.name, gpu.uuid)]


def test_readings_make_sense():
    for gpu in detect_gpus():
        now = GpuMonitor(gpu.uuid).readings()
        assert 0 <= now.memory_used <= now.memory_total
        assert now.utilization is None or 0 <= now.utilization <= 1
        assert now.temperature is None or 0 < now.temperature < 120
        assert now.power is None or 0 < now.power < 3000
        assert all(10**7 < hertz < 10**10 for hertz in now.clocks.values())


def test_with_nothing_said_every_gpu_has_a_worker(tmp_path):
    with Fleet(log_folder=tmp_path) as fleet:
        fleet.start_broker()
        with Client(fleet.frontend) as client:
            fleet.start_worker("w")
            gpus = visible_gpus(detect_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")).gpus
            fleet.wait_for_workers(client, len(gpus))
            told = {(worker["gpu_id"], worker["gpu_uuid"]) for worker in client.stats()["per_gpu_stats"]}
            assert told == {(gpu.index, gpu.uuid) for gpu in gpus}
            assert client.generate("a red circle on a blue background", seed=1).image.size
            assert fleet.terminate("w") == 0
