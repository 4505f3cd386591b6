"""Checkpoints of one file in the layouts of the models' authors."""

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from imagegen_common.addresses import ConfigError
from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.config import LoadOptions, WorkerConfig
from tests import checkpoints
from tests.equality import same_bits
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import make_images, stock_image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
V1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def stable_diffusion(tmp_path):
    """Return a complete Stable Diffusion in one file."""
    path = tmp_path / "dream.v8.safetensors"
    save_file(checkpoints.stable_diffusion(PIPELINES["sd"]()), path)
    return path


def load(path, config=None):
    return LoadedPipeline(path, "tiny", LoadOptions(device="cpu", threads=1, model_config=config))


def same(image, family):
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    return same_bits(image, stock_image(pipeline))


def test_a_complete_pipeline_in_one_file(saved, tmp_path, stable_diffusion):
    config = shutil.copytree(saved("sd"), tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    model, (image,) = make_images(stable_diffusion, model_config=str(config))
    assert model.name == "dream.v8"
    assert same(image, "sd")


def test_the_configuration_of_a_known_layout_is_found_in_the_cache(saved, hub_cache, stable_diffusion):
    hub_cache(saved("sd"), V1)
    model, (image,) = make_images(f"dream={stable_diffusion}")
    assert model.name == "dream"
    assert same(image, "sd")


@pytest.mark.parametrize("family", ["sdxl", "z-image"])
def test_a_denoiser_file_is_combined_with_the_pipeline_of_the_folder(saved, hub_cache, tmp_path, family):
    pipeline = PIPELINES[family]()
    part, layout = ("unet", checkpoints.unet_weights) if family == "sdxl" else ("transformer", checkpoints.z_image)
    path = tmp_path / "tuned.safetensors"
    save_file({name: weight.contiguous() for name, weight in layout(getattr(pipeline, part)).items()}, path)
    snapshot = hub_cache(saved(family), "owner/base")
    for weights in (snapshot / part).glob("*.safetensors"):
        weights.unlink()
    model, (image,) = make_images(path, model_config="owner/base")
    assert model.name == "tuned"
    assert same(image, family)
    loaded = load(path, str(snapshot)).pipeline
    assert {loaded.vae.dtype, getattr(loaded, part).dtype} == {torch.float32}


def test_an_unknown_layout_needs_a_configuration(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        StartError, match=r"odd\.safetensors: the layout of the weights is unknown; name the model by --model-c"
    ):
        load(path)


def test_a_known_layout_without_its_configuration(hub_cache, stable_diffusion):
    words = "the file has no configuration, .*; name a folder with a model_index.json by --model-config"
    with pytest.raises(StartError, match=rf"^{re.escape(str(stable_diffusion))}: {words} \({V1}: no such folder"):
        load(stable_diffusion)
    with pytest.raises(StartError, match=r"^owner/named: no such folder"):
        load(stable_diffusion, "owner/named")


def test_weights_that_do_not_fit_the_configuration(saved, stable_diffusion):
    with pytest.raises(StartError, match=r"SingleFileComponentError|Error: ") as caught:
        load(stable_diffusion, str(saved("sd3")))
    assert "\n" not in str(caught.value)


def test_truncated_and_pickled_files(tmp_path, saved, stable_diffusion):
    stable_diffusion.write_bytes(stable_diffusion.read_bytes()[:-1])
    with pytest.raises(StartError, match=r"dream\.v8\.safetensors: not a complete \.safetensors file"):
        load(stable_diffusion)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(2)}, pickled)
    with pytest.raises(StartError, match=r"pickled\.safetensors: not a complete \.safetensors file"):
        load(pickled, str(saved("sd")))


def test_components_from_the_folder_are_not_unpickled(saved, tmp_path, stable_diffusion):
    config = shutil.copytree(saved("sd"), tmp_path / "config")
    weights = config / "text_encoder" / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(StartError, match=r"only pickled weights \(pytorch_model\.bin\), which are not loaded"):
        load(stable_diffusion, str(config))


def test_options_that_cannot_be_combined(saved, stable_diffusion):
    with pytest.raises(ConfigError, match=r"--model-config needs a single \.safetensors file"):
        WorkerConfig(models=(str(saved("sd")),), model_config=str(saved("sd")))
    with pytest.raises(ConfigError, match="--model-config: '/no/such' does not exist"):
        WorkerConfig(models=(str(stable_diffusion),), model_config="/no/such")
    with pytest.raises(ConfigError, match="--model-config must be a folder or a hub id"):
        WorkerConfig(models=(str(stable_diffusion),), model_config=str(stable_diffusion))
    with pytest.raises(ConfigError, match="--model-variant needs a model of several files"):
        WorkerConfig(models=(str(stable_diffusion),), model_variant="fp16")
    with pytest.raises(ConfigError, match=r"--model-variant must be a word such as fp16, got '\.\./x'"):
        WorkerConfig(models=(str(saved("sd")),), model_variant="../x")
