"""Detection of GPUs: by NVML, the driver's files, or torch in another process."""

import sys

import pytest

from imagegen_worker.devices.detect import detect_gpus, driver_gpus, torch_gpus
from imagegen_worker.devices.gpu import Gpu
from tests.unit.worker.devices.standin import A, B, Card, StandIn

NO_DRIVER = StandIn(driver=False)


@pytest.fixture
def driver(tmp_path):
    """Return a function that adds a card to a folder like /proc/driver/nvidia/gpus."""

    def card(place, uuid, name="NVIDIA Test Card"):
        folder = tmp_path / "gpus" / place
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t {name}\nIRQ: \t 52\nGPU UUID: \t {uuid}\nBus Location: \t {place}\nDevice Minor: \t 0\n"
        )
        return tmp_path / "gpus"

    return card


@pytest.fixture
def python(tmp_path):
    """Return a function that writes a stand-in for the Python interpreter that imports torch."""

    def make(answer):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{answer}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_nvml_takes_precedence_over_the_drivers_files(driver, tmp_path):
    folder = driver("0000:01:00.0", B)
    assert [gpu.uuid for gpu in detect_gpus(StandIn(Card(A)), driver_folder=folder)] == [A]
    assert detect_gpus(StandIn(), driver_folder=folder) == []


def test_without_nvml_gpus_are_read_from_the_drivers_files(driver):
    driver("0000:a1:00.0", B, "Two")
    folder = driver("0000:01:00.0", A, "One")
    assert detect_gpus(NO_DRIVER, driver_folder=folder) == [
        Gpu(number=0, index=0, name="One", uuid=A),
        Gpu(number=1, index=1, name="Two", uuid=B),
    ]


def test_an_uninitialised_card_has_no_uuid(driver):
    (gpu,) = driver_gpus(driver("0000:01:00.0", "GPU-????????-????-????-????-????????????"))
    assert (gpu.uuid, gpu.cuda_id) == (None, "0")


@pytest.mark.parametrize("name", ["nvidia0", "kfd", "nvhost-gpu", "dxg"])
def test_torch_is_queried_if_only_a_device_file_exists(tmp_path, python, name):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / name).touch()
    folders = {"driver_folder": tmp_path / "none", "device_folder": devices}
    gpus = detect_gpus(NO_DRIVER, python=python("""echo '["One", "Two"]'"""), **folders)
    assert gpus == [Gpu(number=0, index=0, name="One"), Gpu(number=1, index=1, name="Two")]


def test_torch_is_not_queried_without_a_device_file(tmp_path, python):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    queried = tmp_path / "queried"
    folders = {"driver_folder": tmp_path / "none", "device_folder": devices}
    assert detect_gpus(NO_DRIVER, python=python(f"touch {queried}; echo '[]'"), **folders) == []
    assert not queried.exists()


def test_the_query_of_torch_ignores_cuda_visible_devices_and_uses_the_bus_order(monkeypatch, python):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (gpu,) = torch_gpus(python("""echo "[\\"${CUDA_VISIBLE_DEVICES-unset} $CUDA_DEVICE_ORDER\\"]" """))
    assert gpu.name == "unset PCI_BUS_ID"


@pytest.mark.parametrize("answer", ["exit 1", "echo no", ":"])
def test_a_failed_query_of_torch_finds_no_gpu(python, answer, caplog):
    assert torch_gpus(python(answer)) == []
    assert "GPU detection by torch failed" in caplog.text


def test_the_installed_torch_can_be_queried(caplog):
    """Only the query is tested here; `tests/gpu` compares its result on a machine with a GPU."""
    torch_gpus(sys.executable)
    assert not caplog.records
