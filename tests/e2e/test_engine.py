"""Features of the engine, through the installed commands."""

import re
import urllib.request
from itertools import combinations

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from imagegen_client import Client, InvalidRequestError
from imagegen_worker.config import WorkerConfig
from tests.e2e.conftest import BROKER, SIMULATED, command
from tests.equality import same_image

SHAPES = ("--device", "cpu", "--torch-threads", "1", "--max-batch-size", "2")


@pytest.mark.parametrize("options", [SIMULATED, SHAPES, (*SHAPES, "--batching", "static")])
def test_a_preview_is_written_to_its_file(fleet, client, tmp_path, options):
    fleet.start_worker("w", *options)
    fleet.wait_for_workers(client, 1)
    out, preview = tmp_path / "out.png", tmp_path / "preview.png"
    prompt = ("a red circle on a blue background", "--seed", "1", "--steps", "20")
    done = command("imagegen", "generate", *prompt, "--out", out, "--preview", preview, "--broker", fleet.frontend)
    assert str(out) in done.stdout
    assert done.stderr == "", "no progress bars without a terminal"
    with Image.open(out) as image, Image.open(preview) as small:
        assert max(small.size) <= 64
        assert small.width * image.height == small.height * image.width
    assert list(tmp_path.glob(".*.part")) == []


@pytest.fixture
def loras(tmp_path):
    """A folder with two LoRAs for the embedded model."""
    folder = tmp_path / "loras"
    folder.mkdir()
    unet = UNet2DConditionModel.from_pretrained(
        WorkerConfig().model_source.location / "unet", local_files_only=True
    )
    layers = {name: layer for name, layer in unet.named_modules() if name.endswith((".to_q", ".to_v"))}
    for seed, file in enumerate(("ink", "water.v2")):
        torch.manual_seed(seed)
        weights = {}
        for name, layer in layers.items():
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features) / 4
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2) / 4
        save_file(weights, folder / f"{file}.safetensors")
    return folder


@pytest.mark.parametrize("options", [(), ("--batching", "static")])
def test_requests_select_loras(fleet, client, tmp_path, loras, options):
    fleet.start_worker("w", *SHAPES, *options, environment={"IMAGEGEN_WORKER_LORA_FOLDER": str(loras)})
    fleet.wait_for_workers(client, 1)
    plain = {"seed": 1, "num_inference_steps": 8}
    wanted = [None, [{"name": "ink"}], [{"name": "water.v2", "scale": 0.5}, {"name": "ink", "scale": 2}], None]
    jobs = [client.submit("a red circle", loras=loras, **plain) for loras in wanted]
    results = [job.result(120) for job in jobs]
    assert "loras" not in results[0].parameters
    assert results[2].parameters["loras"] == [{"name": "ink", "scale": 2}, {"name": "water.v2", "scale": 0.5}]
    without, inked, both, again = (result.image for result in results)
    assert not any(same_image(*pair) for pair in combinations((without, inked, both), 2))
    assert same_image(without, again)
    with pytest.raises(InvalidRequestError, match=r"there is no 'oil' on this worker; there are: ink, water\.v2"):
        client.generate("a red circle", loras=[{"name": "oil"}])
    out = tmp_path / "out.png"
    words = ("a red circle", "--seed", "1", "--steps", "8", "--out", out, "--broker", fleet.frontend)
    command("imagegen", "generate", *words, "--lora", "ink")
    with Image.open(out) as image:
        assert same_image(inked, image)
    failed = command("imagegen", "generate", *words, "--overwrite", "--lora", "oil:0.5", check=False)
    assert failed.returncode != 0
    assert "there are: ink, water.v2" in failed.stderr


def test_a_worker_without_loras_rejects_them(fleet, client):
    fleet.start_worker("w", *SIMULATED)
    fleet.wait_for_workers(client, 1)
    with pytest.raises(InvalidRequestError, match="loras: the worker has none"):
        client.generate("a red circle", loras=[{"name": "ink"}])


def test_metrics_of_the_engine(fleet, tmp_path):
    fleet.start_broker(*BROKER)
    fleet.start_worker("w", *SHAPES, "--http-port", "0")
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        for job in [client.submit("a red circle", num_inference_steps=4) for _ in range(4)]:
            job.result(120)
        address = re.search(r"http://[\d.:]+/metrics", (tmp_path / "logs" / "w.log").read_text())[0]
        names = ("images_total", "step_seconds_count", "rows_per_call_sum", "first_step_wait_seconds_count")

        def read():
            with urllib.request.urlopen(address, timeout=60) as answer:
                text = answer.read().decode()
            return {
                name: float(re.search(rf"^imagegen_worker_{name}{{.*}} (.*)$", text, re.MULTILINE)[1])
                for name in names
            }

        # The results may arrive before the worker has counted them.
        fleet.wait_until(lambda: read()["images_total"] == 4, "four counted images")
        value = read()
        assert value["images_total"] == value["first_step_wait_seconds_count"] == 4
        assert 8 <= value["step_seconds_count"] <= 16
        assert value["rows_per_call_sum"] == 4 * 4 * 2
        fleet.wait_until(lambda: client.stats()["per_gpu_stats"][0]["total_images"] == 4, "four reported images")
        average = client.stats()["per_gpu_stats"][0]["avg_batch_size"]
        assert average == pytest.approx(16 / value["step_seconds_count"], abs=0.001)
