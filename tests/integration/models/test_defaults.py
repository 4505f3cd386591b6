"""Defaults, sizes and tasks of models follow the calls of their pipelines."""

import json

import diffusers
import pytest
import torch

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.capabilities import accepted_parameter
from imagegen_protocol.request import BODY_PARAMETERS
from imagegen_worker.backends.diffusers.call_defaults import read_defaults
from imagegen_worker.backends.diffusers.implied_arguments import implied_arguments
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.outputs import images_of
from imagegen_worker.config import LoadOptions
from tests import families
from tests.integration.models import recent
from tests.integration.models.worker import make_images
from tests.pipelines import tiny_edit, tiny_recent

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),  # PRX has it
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


@pytest.fixture
def folder_of(tmp_path):
    """Save a tiny pipeline with small defaults; return its folder."""

    def save(pipeline, **defaults):
        pipeline.save_pretrained(tmp_path)
        small = {"width": 64, "height": 64, "num_inference_steps": 2, **defaults}
        (tmp_path / "imagegen.json").write_text(json.dumps(small))
        return tmp_path

    return save


def load(folder):
    return LoadedPipeline(folder, "tiny", LoadOptions(device="cpu", threads=1))


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: families.z_image().pipeline, 1024),
        (tiny_recent.ideogram4, 2048),
        (tiny_recent.krea2, 1024),
        (tiny_recent.ernie_image, 1024),
        (tiny_recent.prx, 256),
        (tiny_edit.kontext, 1024),
        (lambda: families.sd().pipeline, 64),
    ],
)
def test_the_default_size_is_that_of_the_call(make, side):
    defaults = read_defaults(make())
    assert (defaults.width, defaults.height) == (side, side)


def _distilled(**scheduler):
    pipeline = families.sdxl().pipeline
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config, **scheduler
    )
    return pipeline


def _consistency():
    pipeline = families.sd().pipeline
    pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def _schnell():
    pipeline = families.flux().pipeline
    config = {**pipeline.transformer.config, "guidance_embeds": False}
    pipeline.transformer = diffusers.FluxTransformer2DModel(**config)
    return pipeline


def _klein():
    pipeline = recent.flux2_klein()
    pipeline.register_to_config(is_distilled=True)
    return pipeline


@pytest.mark.parametrize("make", [lambda: _distilled(timestep_spacing="trailing"), _consistency, _schnell, _klein])
def test_a_distilled_model_has_few_steps_and_no_guidance(make):
    defaults = read_defaults(make())
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (4, 1.0)


@pytest.mark.parametrize(
    ("make", "steps", "guidance"),
    [
        (lambda: families.sdxl().pipeline, 50, 5.0),
        (lambda: _distilled(timestep_spacing="leading"), 50, 5.0),
        (lambda: _distilled(timestep_spacing="trailing", rescale_betas_zero_snr=True), 50, 5.0),
        (lambda: families.flux().pipeline, 28, 3.5),
    ],
)
def test_other_models_keep_the_defaults_of_their_call(make, steps, guidance):
    defaults = read_defaults(make())
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (steps, guidance)


def test_a_guidance_that_the_call_chooses_stays_its_choice(folder_of):
    model = load(folder_of(tiny_recent.ideogram4())).model
    assert model.guidance_scale is None
    assert model.resolve(GenerationRequest(seed=0, prompt="a cat")).call_arguments().get("guidance_scale") is None
    assert model.resolve(GenerationRequest(seed=0, prompt="a cat", guidance_scale=4.0)).guidance_scale == 4.0
    accepted = accepted_parameter(model.capabilities(), BODY_PARAMETERS["guidance_scale"])
    assert accepted is not None
    assert accepted.default is None


def test_a_guidance_schedule_follows_the_steps_and_gives_way_to_a_guidance_scale(folder_of):
    model = load(folder_of(tiny_recent.ideogram4())).model
    defaults = {"guidance_schedule": (7.0,) * 45 + (3.0,) * 3}

    def schedule(**fields):
        return implied_arguments(defaults, model.resolve(GenerationRequest(seed=0, prompt="a cat", **fields)))

    assert schedule(num_inference_steps=16) == {"guidance_schedule": [7.0] * 15 + [3.0]}
    assert schedule(num_inference_steps=48) == {}
    assert schedule(guidance_scale=4.0) == {"guidance_schedule": None}


def test_a_model_whose_setting_is_a_list_of_two_is_loaded(folder_of):
    folder = folder_of(tiny_recent.krea2())
    assert json.loads((folder / "model_index.json").read_text())["text_encoder_select_layers"] == [1, 2]
    make_images(folder)


def test_a_component_that_its_pipeline_adds_to_transformers_is_found(folder_of):
    assert load(folder_of(tiny_recent.prx(), width=256, height=256)).model.width == 256


def test_images_are_found_in_outputs_of_both_names():
    from diffusers.pipelines.kandinsky5.pipeline_output import KandinskyImagePipelineOutput

    assert images_of(KandinskyImagePipelineOutput(image=["one"])) == ["one"]
    assert images_of((["two"],)) == ["two"]


def test_a_pipeline_with_an_optional_image_generates_from_text_too(folder_of):
    model = load(folder_of(recent.flux2_klein())).model
    assert set(model.tasks) == {"text-to-image", "image-to-image"}
    assert "text-to-image" not in load(folder_of(families.sdxl_img2img().pipeline)).model.tasks


def test_only_the_sizes_that_a_pipeline_generates_are_accepted(folder_of, monkeypatch, caplog):
    kind = diffusers.StableDiffusionPipeline
    stock = kind.prepare_latents

    def always_square(self, batch_size, channels, height, width, *rest, **more):
        return stock(self, batch_size, channels, 64, 64, *rest, **more)

    folder = folder_of(families.sd().pipeline)
    assert load(folder).model.sizes == ()
    monkeypatch.setattr(kind, "prepare_latents", always_square)
    model = load(folder).model
    assert model.sizes == ((64, 64),)
    assert "the pipeline ignores other sizes" in caplog.text
    model.resolve(GenerationRequest(seed=0, prompt="a cat"))
    with pytest.raises(InvalidRequestError, match="generates only 64 x 64 pixels, got 128 x 64"):
        model.resolve(GenerationRequest(seed=0, prompt="a cat", width=128))


def test_kontext_generates_the_size_that_is_requested(folder_of):
    model = load(folder_of(families.flux().pipeline)).model
    request = model.resolve(GenerationRequest(seed=0, prompt="a cat", width=128))
    assert implied_arguments({"max_area": 1024**2}, request) == {"max_area": 128 * 64}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
