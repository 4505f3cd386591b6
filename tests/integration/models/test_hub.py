"""Models that are not cached are downloaded once."""

import shutil
import threading

import pytest

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.config import LoadOptions
from imagegen_worker.models.sources import read_source
from tests.integration.models.hub import Hub


@pytest.fixture
def serve(tmp_path):
    """Serve a copy of a folder as the model `owner/tiny`."""
    hubs = []

    def serve(folder):
        hub = Hub(shutil.copytree(folder, tmp_path / "served"))
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        hubs.append((hub, thread))
        return hub

    yield serve
    for hub, thread in hubs:
        hub.shutdown()
        hub.server_close()
        thread.join()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads a model with an initially empty cache and returns its pipeline class."""

    def load(hub, model, *, offline=False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        loaded = LoadedPipeline(read_source(model).location, model, LoadOptions(device="cpu", threads=1))
        return type(loaded.pipeline).__name__

    return load


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}])
def test_a_model_is_downloaded_once(saved, serve, load, options):
    hub = serve(saved("sd", **options))
    (hub.folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle that nobody asks for")
    assert load(hub, "owner/tiny") == "StableDiffusionPipeline"
    files = [path for path in hub.asked if "/resolve/" in path]
    assert any(path.endswith(".safetensors") for path in files)
    assert not any(path.endswith(".bin") for path in files)
    hub.asked.clear()
    assert load(hub, "owner/tiny") == "StableDiffusionPipeline"
    assert not any("owner/tiny" in path for path in hub.asked), "the copy that is here is taken"
    assert load(hub, "owner/tiny", offline=True) == "StableDiffusionPipeline"


def test_an_incomplete_copy_is_completed(saved, serve, load, tmp_path):
    hub = serve(saved("sd"))
    load(hub, "owner/tiny")
    (weights,) = (tmp_path / "cache").glob("*/snapshots/*/vae/*.safetensors")
    weights.unlink()
    assert load(hub, "owner/tiny") == "StableDiffusionPipeline"
    assert weights.exists()


def test_a_model_that_does_not_exist(saved, serve, load):
    hub = serve(saved("sd"))
    words = "owner/other: no such folder, and no complete copy of this model in .*"
    with pytest.raises(StartError, match=f"{words}the download failed: RepositoryNotFoundError: 404"):
        load(hub, "owner/other")
    hub.asked.clear()
    with pytest.raises(StartError, match=rf"{words}downloads are disabled \(HF_HUB_OFFLINE\)"):
        load(hub, "owner/other", offline=True)
    assert hub.asked == []


def test_an_unreachable_hub(saved, serve, load):
    hub = serve(saved("sd"))
    hub.url = "http://127.0.0.1:1"
    with pytest.raises(StartError, match="the download failed: ConnectError") as caught:
        load(hub, "owner/tiny")
    assert "\n" not in str(caught.value)
