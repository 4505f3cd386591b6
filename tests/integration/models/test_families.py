"""Pipelines of many families, from folders and from the cache of the model hub."""

import json
import shutil

import pytest
import torch

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.model_folders import find_model
from imagegen_worker.config import LoadOptions
from imagegen_worker.models.sources import HubModel
from tests.equality import same_bits
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import make_images, stock_image

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("family", PIPELINES)
def test_a_request_gives_the_stock_image(saved, family):
    folder = saved(family)
    model, (image,) = make_images(folder)
    assert model.name == folder.name
    assert (model.width, model.num_inference_steps) == (64, 2)
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    assert same_bits(image, stock_image(pipeline))


def test_static_batching_has_the_same_sources(saved, hub_cache):
    hub_cache(saved("sdxl"), "owner/sdxl")
    model, images = make_images("owner/sdxl", {}, {"prompt": "a dog"}, batching="static")
    assert model.name == "owner/sdxl"
    assert len(images) == 2


@pytest.mark.parametrize("text", ["owner/tiny", "owner/tiny@v2", "mine=owner/tiny@v2"])
def test_an_id_is_found_in_the_cache(saved, hub_cache, text):
    snapshot = hub_cache(saved("sd"), "owner/tiny", "v2" if "@" in text else "main")
    model, _ = make_images(text)
    assert model.name == ("mine" if "=" in text else "owner/tiny")
    assert model.width == 64, "from the imagegen.json that lies beside the weights"
    assert find_model(HubModel("owner/tiny", "v2" if "@" in text else None), None) == (snapshot, None)


def test_an_id_that_is_not_cached_while_offline(hub_cache):
    words = "owner/none: no such folder, and no complete copy of this model in .*/hub; "
    with pytest.raises(StartError, match=words + r"downloads are disabled \(HF_HUB_OFFLINE\)"):
        find_model(HubModel("owner/none"), None)


def test_an_incomplete_cached_copy_is_not_used(saved, hub_cache):
    snapshot = hub_cache(saved("sd"), "owner/tiny")
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        StartError, match=r"unet: the weights \(\.safetensors\) are missing; downloads are disabled"
    ):
        find_model(HubModel("owner/tiny"), None)


def test_a_cached_modular_repository_is_refused_by_name(hub_cache, tmp_path):
    folder = tmp_path / "modular"
    folder.mkdir()
    (folder / "modular_model_index.json").write_text("{}")
    hub_cache(folder, "owner/modular")
    with pytest.raises(StartError, match="owner/modular: a modular pipeline"):
        find_model(HubModel("owner/modular"), None)


@pytest.mark.parametrize("given", [None, "fp16"])
def test_weights_of_a_variant_only_are_found(saved, hub_cache, given):
    folder = saved("sd", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    options = LoadOptions(device="cpu", threads=1, model_variant=given)
    assert LoadedPipeline(folder, "tiny", options).pipeline.unet.dtype == torch.float32
    snapshot = hub_cache(folder, "owner/tiny")
    assert find_model(HubModel("owner/tiny"), given) == (snapshot, "fp16")


def test_weights_without_a_variant_are_preferred_unless_one_is_requested(saved, tmp_path):
    folder = shutil.copytree(saved("sd"), tmp_path / "both")
    for part in ("unet", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert find_model(folder, None) == (folder, None)
    assert find_model(folder, "fp16") == (folder, "fp16"), "the text encoder has none, and is loaded plain"
    LoadedPipeline(folder, "tiny", LoadOptions(device="cpu", threads=1, model_variant="fp16"))
    with pytest.raises(StartError, match="there is no variant 'bf16' of the weights; there are: fp16"):
        find_model(folder, "bf16")


def _index(**change):
    def edit(folder):
        path = folder / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


def _cut(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _lost(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _other_shape(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 48}))


def _pickled(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def _shard_lost(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00003.safetensors"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model_index.json").write_text("{"), r"model_index\.json: not JSON"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "has no pipeline None"),
        (_index(_class_name="NoSuchPipeline"), r"diffusers [\d.]+ has no pipeline 'NoSuchPipeline'"),
        (_index(_class_name="UNet2DConditionModel"), "has no pipeline 'UNet2DConditionModel'"),
        (_index(_class_name=["evil", "Pipeline"]), "a pipeline with code of its own is not loaded"),
        (lambda folder: (folder / "None.py").write_text("1/0"), "a pipeline with code of its own is not loaded"),
        (_index(unet=["diffusers", "NoSuchUNet"]), r"diffusers [\d.]+ has no 'NoSuchUNet' for unet"),
        (_index(unet=["no_such_library", "UNet"]), "no_such_library"),
        (lambda folder: shutil.rmtree(folder / "vae"), r"the folder of vae \(AutoencoderKL\) is missing"),
        (_cut, "not a complete .safetensors file: SafetensorError"),
        (_lost, r"unet: the weights \(\.safetensors\) are missing"),
        (_other_shape, r"expected shape torch\.Size"),
        (_pickled, r"only pickled weights \(diffusion_pytorch_model\.bin\), which are not loaded"),
        (_shard_lost, "unet: only 1 of 3 weight files are present"),
        (lambda folder: (folder / "imagegen.json").write_text("{"), r"imagegen\.json: not JSON"),
        (
            lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{"),
            r"tokenizer/tokenizer\.json: not JSON",
        ),
    ],
)
def test_the_error_of_a_broken_folder_is_one_line(saved, tmp_path, damage, words):
    folder = shutil.copytree(saved("sd"), tmp_path / "broken")
    damage(folder)
    with pytest.raises(StartError, match=words) as caught:
        LoadedPipeline(folder, "broken", LoadOptions(device="cpu", threads=1))
    assert "\n" not in str(caught.value)
    assert caught.value.status == 78
