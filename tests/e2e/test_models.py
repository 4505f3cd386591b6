"""Models from folders, the hub cache and single files, through the installed commands."""

import json
import os
import shutil

import pytest
from safetensors.torch import save_file

from imagegen_client import GenerationFailedError, InvalidRequestError
from tests import checkpoints, families
from tests.e2e.conftest import SIMULATED, command
from tests.equality import same_image

QUICK = ("--device", "cpu", "--torch-threads", "1", "--max-batch-size", "2")
COMMIT = "c0ffee" + "0" * 34
SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Stable Diffusion in a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    families.sd().pipeline.save_pretrained(folder)
    (folder / "imagegen.json").write_text(json.dumps(SMALL))
    return folder


@pytest.fixture
def hub(saved, tmp_path):
    """A folder for HF_HOME with a tiny FLUX in the cache of the hub."""
    place = tmp_path / "hf" / "hub" / "models--owner--flux"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    families.flux().pipeline.save_pretrained(place / "snapshots" / COMMIT)
    (place / "snapshots" / COMMIT / "imagegen.json").write_text(json.dumps(SMALL))
    return {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}


def test_a_folder_a_hub_id_and_a_single_file(fleet, client, saved, hub, tmp_path):
    config = shutil.copytree(saved, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(checkpoints.stable_diffusion(families.sd().pipeline), tmp_path / "dream.safetensors")
    fleet.start_worker("folder", *QUICK, "--model", str(saved))
    fleet.start_worker("id", *QUICK, "--gpu", "1", "--model", "owner/flux", environment=hub)
    file = (f"dream={tmp_path}/dream.safetensors", "--model-config", str(config))
    fleet.start_worker("file", *QUICK, "--gpu", "2", "--model", *file, environment=hub)
    fleet.wait_for_workers(client, 3)
    jobs = [client.submit("a cat", model=model, seed=3) for model in ("tiny", "owner/flux", "dream")]
    results = [job.result(120) for job in jobs]
    assert [result.worker for result in results] == ["folder", "id", "file"]
    assert [result.image.size for result in results] == [(64, 64)] * 3
    assert same_image(results[0].image, results[2].image), "both have the same weights"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("owner/none", 78, "could not be loaded: owner/none: no such folder, and no complete copy"),
        ("broken", 78, "broken/vae/diffusion_pytorch_model.safetensors: not a complete .safetensors file"),
        ("nowhere", 2, "--model: 'nowhere' does not exist; expected builtin:shapes, a diffusers folder"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_worker(saved, hub, tmp_path, model, status, words):
    broken = shutil.copytree(saved, tmp_path / "broken")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = command(
        "imagegen-worker", *QUICK, "--model", model, check=False, cwd=tmp_path, env={**os.environ, **hub}
    )
    assert done.returncode == status
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_several_models_in_one_worker(fleet, client, saved, hub):
    models = ("--model", str(saved), "--model", "owner/flux", "--model-memory", "1kB", "--model-patience", "0")
    fleet.start_worker("w", *QUICK, *models, environment=hub)
    fleet.wait_for_workers(client, 1)
    assert client.stats()["per_gpu_stats"][0]["models"] == ["tiny", "owner/flux"]
    requested = ["tiny", "owner/flux", None, "owner/flux", "tiny"]
    jobs = [client.submit("a cat", model=model, seed=3) for model in requested]
    results = [job.result(120) for job in jobs]
    assert [result.model for result in results] == ["tiny", "owner/flux", "tiny", "owner/flux", "tiny"]
    assert {result.image.size for result in results} == {(64, 64)}
    with pytest.raises(InvalidRequestError, match="the model owner/flux generates multiples of 16 pixels"):
        client.generate("a cat", model="owner/flux", width=72)


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_a_model_that_fails_on_demand_fails_only_its_own_requests(fleet, client, saved, tmp_path, batching):
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    models = ("--model", str(saved), "--model", str(broken), "--batching", batching)
    fleet.start_worker("w", *QUICK, *models)
    fleet.wait_for_workers(client, 1)
    for _ in range(2):
        with pytest.raises(GenerationFailedError, match=r"the model broken cannot be loaded: .*'NoSuchPipeline'"):
            client.generate("a cat", model="broken")
        assert client.generate("a cat", model="tiny").model == "tiny"


def test_a_simulated_worker_swaps_models_beyond_its_memory(fleet, client):
    models = [word for name in "abc" for word in ("--model", name)]
    cost = ("--simulated-load-seconds", "0.05", "--model-memory", "2GiB", "--model-patience", "0.1")
    fleet.start_worker("w", *SIMULATED, *cost, *models)
    fleet.wait_for_workers(client, 1)
    jobs = [client.submit("a cat", model="abc"[number % 3]) for number in range(30)]
    assert [job.result(120).model for job in jobs] == ["abc"[number % 3] for number in range(30)]


def test_requests_are_dispatched_to_workers_with_their_model_loaded(fleet, client):
    room = ("--model-memory", "1GiB", "--model-patience", "3600", "--simulated-load-seconds", "0.01")
    fleet.start_worker("has-a", *SIMULATED, *room, "--model", "a", "--model", "b")
    fleet.start_worker("has-b", *SIMULATED, *room, "--gpu", "1", "--model", "b", "--model", "a")
    fleet.wait_for_workers(client, 2)
    warm = {each["worker"]: each["warm_models"] for each in client.stats()["per_gpu_stats"]}
    assert warm == {"has-a": ["a"], "has-b": ["b"]}
    for number in range(6):
        model = "ab"[number % 2]
        assert client.generate("a cat", model=model).worker == f"has-{model}"
