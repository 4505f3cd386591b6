"""Where GPUs are looked for: NVML, the driver's files, torch in another process."""

import sys

import pytest

from imagegen_worker.devices.detect import detect_gpus, driver_gpus, torch_gpus
from imagegen_worker.devices.gpu import Gpu
from tests.unit.worker.devices.standin import A, B, Card, StandIn

NO_DRIVER = StandIn(driver=False)


@pytest.fixture
def driver(tmp_path):
    """A folder as /proc/driver/nvidia/gpus."""

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
    """A program that stands for the Python which imports torch."""

    def make(answer):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{answer}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_nvml_is_believed(driver, tmp_path):
    folder = driver("0000:01:00.0", B)
    assert [gpu.uuid for gpu in detect_gpus(StandIn(Card(A)), driver_folder=folder)] == [A]
    assert detect_gpus(StandIn(), driver_folder=folder) == []


def test_without_nvml_the_drivers_files_tell_it(driver):
    driver("0000:a1:00.0", B, "Two")
    folder = driver("0000:01:00.0", A, "One")
    assert detect_gpus(NO_DRIVER, driver_folder=folder) == [
        Gpu(number=0, index=0, name="One", uuid=A),
        Gpu(number=1, index=1, name="Two", uuid=B),
    ]


def test_a_card_that_has_not_started_has_no_uuid_yet(driver):
    (gpu,) = driver_gpus(driver("0000:01:00.0", "GPU-????????-????-????-????-????????????"))
    assert (gpu.uuid, gpu.cuda_id) == (None, "0")


@pytest.mark.parametrize("name", ["nvidia0", "kfd", "nvhost-gpu", "dxg"])
def test_with_a_device_that_nobody_explains_torch_is_asked(tmp_path, python, name):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / name).touch()
    elsewhere = {"driver_folder": tmp_path / "none", "device_folder": devices}
    gpus = detect_gpus(NO_DRIVER, python=python("""echo '["One", "Two"]'"""), **elsewhere)
    assert gpus == [Gpu(number=0, index=0, name="One"), Gpu(number=1, index=1, name="Two")]


def test_without_any_device_torch_is_not_asked(tmp_path, python):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    asked = tmp_path / "asked"
    elsewhere = {"driver_folder": tmp_path / "none", "device_folder": devices}
    assert detect_gpus(NO_DRIVER, python=python(f"touch {asked}; echo '[]'"), **elsewhere) == []
    assert not asked.exists()


def test_torch_counts_every_gpu_in_the_order_of_the_bus(monkeypatch, python):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (gpu,) = torch_gpus(python("""echo "[\\"${CUDA_VISIBLE_DEVICES-unset} $CUDA_DEVICE_ORDER\\"]" """))
    assert gpu.name == "unset PCI_BUS_ID"


@pytest.mark.parametrize("answer", ["exit 1", "echo no", ":"])
def test_a_torch_that_can_not_be_asked_is_no_gpu(python, answer, caplog):
    assert torch_gpus(python(answer)) == []
    assert "GPU detection by torch failed" in caplog.text


def test_the_real_torch_can_be_asked(caplog):
    """On a machine without a GPU it finds none; with one, `tests/gpu` compares."""
    torch_gpus(sys.executable)
    assert not caplog.records
