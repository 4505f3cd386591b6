"""Workers that can't start: a broken model or a name in use. Each logs one line with the reason and the remedy."""

import shutil

import pytest

from imagegen_worker.models.sources import BUILTIN_FOLDER
from tests.e2e.conftest import SIMULATED, command, start_simulated

SHAPES = BUILTIN_FOLDER / "shapes"


def _nothing(folder):
    shutil.rmtree(folder)


def _no_index(folder):
    (folder / "model_index.json").unlink()


def _cut_weights(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


# tests/integration/models/test_families.py tests the other kinds of damage without a process.
@pytest.mark.parametrize("damage", [_nothing, _no_index, _cut_weights])
def test_a_worker_with_a_broken_model_exits_with_a_clear_error(tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(SHAPES, folder)
    damage(folder)
    done = command("imagegen-worker", "--model", str(folder), "--device", "cpu", check=False)
    assert done.returncode in (2, 78)
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert "model" in last
    assert "Traceback" not in last


def test_a_second_worker_of_the_same_name_waits_until_the_first_has_left(fleet, client, tmp_path):
    start_simulated(fleet, client, "gpu0")
    endpoint = ("--broker", fleet.brokers["broker"].backend)
    fleet.spawn("second", ["imagegen-worker", *endpoint, "--name", "gpu0", "--gpu", "7", *SIMULATED])
    log = tmp_path / "logs" / "second.log"
    fleet.wait_until(lambda: "worker_name_taken" in log.read_text(), "the rejection in the second worker's log")
    assert "is named 'gpu0'; choose another name with --name" in log.read_text()

    def gpus():
        return [gpu["gpu_id"] for gpu in client.stats()["per_gpu_stats"]]

    assert gpus() == [0]
    assert client.generate("a red circle").worker == "gpu0"
    assert fleet.terminate("gpu0") == 0
    fleet.wait_until(lambda: gpus() == [7], "the second worker in place of the first")
    assert client.generate("a red circle").worker == "gpu0"
    assert log.read_text().count("worker_name_taken") == 1
