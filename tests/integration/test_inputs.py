"""Images, schedulers and further parameters: both backends give the images of the stock pipelines."""

import copy
import functools
import io
import json
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.request import make_request
from imagegen_worker.backends import Row, completed, ignore_steps
from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.pipeline_copy import private_copy
from imagegen_worker.backends.diffusers.unet_channels import UNetWithLatentChannels
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.core.model import Model
from imagegen_worker.engines.continuous.scheduler import BatchScheduler, ForwardDone
from imagegen_worker.images.decoding import decode_inputs
from tests.equality import pixel_difference, same_bits, same_image
from tests.families import FAMILIES, SIDE
from tests.integration.continuous.helpers import one_thread

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # from schedulers
]
__all__ = ["one_thread"]

AUTO = {"image-to-image": diffusers.AutoPipelineForImage2Image, "inpainting": diffusers.AutoPipelineForInpainting}
SHORT = {"flux": {"max_sequence_length": 32}, "sd3": {"max_sequence_length": 32}}
SHORT["pixart-sigma"] = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 32}
SHORT["flux2-klein"] = {"max_sequence_length": 64, "text_encoder_out_layers": [1, 2, 3]}


@dataclass
class Loaded:
    """One model in both backends, and its stock pipeline."""

    name: str
    stock: Any
    static: DiffusersBackend
    stepwise: StepwiseDiffusers
    model: Model

    def request(self, task="text-to-image", image=None, mask=None, extra=None, **fields):
        frames = {"image": image or picture(), "mask_image": mask or circle()}
        inputs = {"text-to-image": [], "image-to-image": ["image"], "inpainting": ["image", "mask_image"]}[task]
        extra = {**SHORT.get(self.name, {}), **(extra or {})}
        fields = {"prompt": "a red cat", "seed": 3, "num_inference_steps": 4, "guidance_scale": 3.0, **fields}
        asked = make_request(**fields, inputs=inputs, extra=extra)
        if not inputs:
            self.model.check(asked)
            return self.model.resolve(asked)
        return decode_inputs(asked, self.model, [png(frames[name]) for name in inputs])

    def both(self, request):
        """The image of one request made alone, by both backends; they must be equal."""
        row = Row(request, request.seeds[0])
        one = completed(self.static.generate([row], ignore_steps)[0])
        (other,), _ = self.together([row])
        assert same_bits(one, other)
        return one

    def together(self, rows):
        """The images of rows that run at the same time, and the events of the scheduler."""
        events = []
        with self.stepwise.session():
            scheduler = BatchScheduler(observe=events.append, timer=self.stepwise.timer)
            tasks = [
                scheduler.start(functools.partial(self.stepwise.generate, [row], ignore_steps)) for row in rows
            ]
            while scheduler.step():
                pass
        for task in tasks:
            if task.error is not None:
                raise task.error
        return [task.result[0] for task in tasks], events

    def in_one_call(self, rows):
        """The images of alike rows, made by one call among those that meet."""
        with self.stepwise.session():
            scheduler = BatchScheduler(timer=self.stepwise.timer)
            task = scheduler.start(functools.partial(self.stepwise.generate, rows, ignore_steps), images=len(rows))
            while scheduler.step():
                pass
        if task.error is not None:
            raise task.error
        return task.result

    def by_stock(self, task="text-to-image", scheduler=None, seed=3, **arguments):
        """The image of the stock pipeline for a task."""
        pipeline = copy.copy(self.stock) if task not in AUTO else AUTO[task].from_pipe(self.stock)
        pipeline.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipeline.scheduler = scheduler.from_config(self.stock.scheduler.config)
        given = {
            "prompt": "a red cat",
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            **SHORT.get(self.name, {}),
        }
        generator = torch.Generator("cpu").manual_seed(seed)
        return pipeline(**{**given, **arguments}, generator=generator).images[0]


def picture(side=SIDE, colour="orange"):
    image = Image.new("RGB", (side, side), "navy")
    ImageDraw.Draw(image).rectangle((8, 8, 40, 50), fill=colour)
    return image


def circle(side=SIDE):
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).ellipse((10, 10, 50, 50), fill=255)
    return mask


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def load_builtin():
    config = WorkerConfig()
    return LoadedPipeline(config.model_source.location, config.model_name, LoadOptions(device="cpu", threads=1))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a family as a worker does, once."""
    made = {}

    def load(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            FAMILIES[name]().pipeline.save_pretrained(folder)
            (folder / "imagegen.json").write_text(json.dumps({"width": SIDE, "height": SIDE}))
            stock = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
            options = LoadOptions(device="cpu", threads=1)
            static = DiffusersBackend(folder, name, options, max_batch_size=4)
            stepwise = StepwiseDiffusers(folder, name, options, max_batch_size=4)
            model = static.warm_up().models[0]
            assert stepwise.warm_up().models == (model,)
            made[name] = Loaded(name, stock, static, stepwise, model)
        return made[name]

    def trial(loaded, *arguments, stock=LoadedPipeline.trial, **options):
        row = stock(loaded, *arguments, **options)
        extra = loaded.model.tasks[row.request.task].convert_extra("", SHORT.get(loaded.model.name, {}))
        return replace(row, request=replace(row.request, extra=extra))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadedPipeline, "trial", trial)  # some families' own defaults are too much for tiny ones
        yield load
    for each in made.values():
        each.stepwise.close()
        each.static.close()


STARTS = {
    "text-to-image": {"width": SIDE, "height": SIDE},
    "image-to-image": {"image": picture(), "strength": 0.6},
    "inpainting": {"image": picture(), "mask_image": circle(), "strength": 0.6, "width": SIDE, "height": SIDE},
}


@pytest.mark.parametrize("task", STARTS)
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "z-image"])
def test_a_request_alone_gives_the_stock_image(load, name, task):
    loaded = load(name)
    strength = {} if task == "text-to-image" else {"strength": 0.6}
    given = dict(STARTS[task])
    if task == "image-to-image" and name in ("sd3", "flux", "z-image"):
        given |= {"width": SIDE, "height": SIDE}
    assert same_bits(loaded.both(loaded.request(task, **strength)), loaded.by_stock(task, **given))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_all_kinds_of_tasks_share_forwards(load, name):
    loaded = load(name)
    requests = [
        loaded.request(seed=1),
        loaded.request("image-to-image", seed=2, strength=0.75, num_inference_steps=8),
        loaded.request("inpainting", seed=3, strength=0.6),
        loaded.request("image-to-image", seed=4, image=picture(colour="green")),
    ]
    alone = [loaded.both(request) for request in requests]
    images, events = loaded.together([Row(request, request.seeds[0]) for request in requests])
    shared = [len(event.tasks) for event in events if isinstance(event, ForwardDone) and event.stage.is_denoiser]
    assert max(shared) >= 3
    assert all(map(same_image, images, alone))


@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_requests_with_different_images_share_a_call(load, name, task):
    loaded = load(name)
    requests = [
        loaded.request(task, seed=seed, image=picture(colour=colour), prompt=colour)
        for seed, colour in enumerate(["orange", "green", "white"])
    ]
    assert len({request.batch_key for request in requests}) == 1
    alone = [loaded.both(request) for request in requests]
    rows = [Row(request, request.seeds[0]) for request in requests]
    images = loaded.static.generate(rows, ignore_steps)
    assert all(map(same_image, images, alone))
    assert loaded.stepwise.call_key(requests[0]) is not None
    assert all(map(same_image, loaded.in_one_call(rows), alone))
    assert not same_image(images[0], images[1])


def test_reported_steps_are_those_of_the_pipeline(load):
    loaded = load("sdxl")
    request = loaded.request("image-to-image", strength=0.5, num_inference_steps=8)
    told = []

    def on_step(step, steps, sketches=()):
        told.append((step, steps))

    loaded.static.generate([Row(request, 1)], on_step)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_larger_image_is_resized(load):
    loaded = load("sd")
    request = loaded.request("inpainting", image=picture(128), mask=circle(128), width=SIDE, height=SIDE)
    small = {"image": picture(128).resize((SIDE, SIDE), Image.Resampling.LANCZOS)}
    small["mask_image"] = circle(128).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    made = loaded.by_stock("inpainting", **small, width=SIDE, height=SIDE, strength=1.0)
    assert same_bits(loaded.both(request), made)


# ---- schedulers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
def test_another_scheduler_gives_the_stock_image(load, task, kind):
    loaded = load("sd")
    strength = {} if task == "text-to-image" else {"strength": 0.9}
    made = loaded.both(loaded.request(task, scheduler=kind, **strength))
    assert same_bits(made, loaded.by_stock(task, getattr(diffusers, kind), **STARTS[task] | strength))
    assert not same_image(made, loaded.both(loaded.request(task, **strength))), "the next has the model's own"


def test_every_offered_scheduler_works(load):
    loaded = load("sd")
    assert loaded.model.schedulers[0] == type(loaded.stock.scheduler).__name__
    assert len(loaded.model.schedulers) >= 5
    for kind in loaded.model.schedulers:
        for task in ("text-to-image", "image-to-image"):
            assert loaded.both(loaded.request(task, scheduler=kind)).size == (SIDE, SIDE)


def test_schedulers_mix_in_one_forward(load):
    loaded = load("sd")
    kinds = ["DDIMScheduler", "EulerDiscreteScheduler", None, "DDIMScheduler"]
    requests = [loaded.request(scheduler=kind, seed=seed) for seed, kind in enumerate(kinds)]
    alone = [loaded.both(request) for request in requests]
    images, _ = loaded.together([Row(request, request.seeds[0]) for request in requests])
    assert all(map(same_image, images, alone))


@pytest.mark.parametrize(
    ("name", "kind"), [("sd", "FlowMatchEulerDiscreteScheduler"), ("sd", "Flax"), ("flux", "DDIMScheduler")]
)
def test_an_unsupported_scheduler_is_rejected_with_the_supported_ones(load, name, kind):
    loaded = load(name)
    with pytest.raises(InvalidRequestError) as caught:
        loaded.request(scheduler=kind)
    assert f"scheduler: the model {name} does not support '{kind}'; supported: " in caught.value.message
    assert type(loaded.stock.scheduler).__name__ in caught.value.message


# ---- further parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("sdxl", {"guidance_rescale": 0.7}),
        ("sdxl", {"prompt_2": "a dog", "negative_prompt_2": "blur"}),
        ("sdxl", {"original_size": [512, 256], "crops_coords_top_left": [8, 16]}),
        ("sd", {"guidance_rescale": 0.7, "eta": 1.0}),
        ("sd3", {"clip_skip": 1, "prompt_3": "a dog"}),
        ("flux", {"max_sequence_length": 16, "true_cfg_scale": 1.5, "negative_prompt_2": "dog"}),
        ("flux", {"sigmas": [1.0, 0.7, 0.5, 0.2]}),
        ("pixart-sigma", {"max_sequence_length": 4}),
    ],
)
def test_a_further_parameter_reaches_the_call(load, name, extra):
    loaded = load(name)
    spelled = {key: tuple(value) if "size" in key or "coords" in key else value for key, value in extra.items()}
    negative = {"negative_prompt": "dog"} if name == "flux" else {}
    made = loaded.both(loaded.request(extra=extra, **negative))
    assert same_bits(made, loaded.by_stock(**STARTS["text-to-image"], **negative, **spelled))
    assert pixel_difference(made, loaded.both(loaded.request(**negative))) > 0, "some parameters do little"


def test_text_parameters_are_repeated_for_each_prompt_of_a_batched_call(load):
    loaded = load("sdxl")
    requests = [loaded.request(seed=seed, prompt=f"{seed}", extra={"prompt_2": "a dog"}) for seed in range(3)]
    alone = [loaded.both(request) for request in requests]
    images = loaded.static.generate([Row(request, request.seeds[0]) for request in requests], ignore_steps)
    assert all(map(same_image, images, alone))


@pytest.mark.parametrize(
    ("task", "extra", "words"),
    [
        (
            "text-to-image",
            {"foo": 1},
            "extra: the model sdxl does not accept 'foo'; accepted: clip_skip, crops_coords_top_",
        ),
        ("text-to-image", {"prompt_embeds": [1.0]}, "does not accept 'prompt_embeds'"),
        ("text-to-image", {"latents": 1}, "does not accept 'latents'"),
        (
            "text-to-image",
            {"callback_on_step_end_tensor_inputs": ["a"]},
            "does not accept 'callback_on_step_end_tensor_in",
        ),
        ("text-to-image", {"return_dict": False}, "does not accept 'return_dict'"),
        ("text-to-image", {"aesthetic_score": 5.0}, "does not accept 'aesthetic_score'"),
        ("inpainting", {"padding_mask_crop": 8}, "does not accept 'padding_mask_crop'"),
        ("text-to-image", {"generator": 1}, "extra: 'generator' is not an extra parameter: say the seed"),
        (
            "text-to-image",
            {"output_type": "latent"},
            "extra: 'output_type' is not an extra parameter: say the output_format",
        ),
        (
            "text-to-image",
            {"num_images_per_prompt": 2},
            "'num_images_per_prompt' is not an extra parameter: say num_images",
        ),
        ("text-to-image", {"clip_skip": "1"}, "extra: clip_skip: expected `int | null`, got `str`, got '1'"),
        ("text-to-image", {"original_size": [64]}, "extra: original_size: expected `array` of length 2"),
    ],
)
def test_an_unknown_parameter_is_rejected(load, task, extra, words):
    with pytest.raises(InvalidRequestError) as caught:
        load("sdxl").request(task, extra=extra)
    assert words in caught.value.message


# ---- models with other ideas of images ---------------------------------------------------------------------


def test_a_family_without_image_inputs_rejects_images(load):
    with pytest.raises(
        InvalidRequestError, match="model pixart-sigma supports text-to-image, not image-to-image: got the"
    ):
        load("pixart-sigma").request("image-to-image")


def test_a_pipeline_with_an_image_parameter_works(load):
    loaded = load("sdxl-img2img")
    assert list(loaded.model.tasks) == ["image-to-image", "inpainting"]
    made = loaded.both(loaded.request("image-to-image", strength=0.6))
    assert same_bits(made, loaded.by_stock(image=picture(), strength=0.6))
    with pytest.raises(
        InvalidRequestError, match="supports image-to-image and inpainting, not text-to-image: got no im"
    ):
        loaded.request()


def test_an_inpainting_pipeline_needs_a_mask(load):
    loaded = load("sdxl-inpaint")
    assert list(loaded.model.tasks) == ["inpainting"]
    made = loaded.both(loaded.request("inpainting", strength=0.6))
    assert same_bits(made, loaded.by_stock(**STARTS["inpainting"]))


def test_reference_images_of_different_requests_are_never_mixed(load):
    loaded = load("flux2-klein")
    assert list(loaded.model.tasks) == ["text-to-image", "image-to-image"]
    images = [picture(), picture(colour="green")]
    requests = [loaded.request("image-to-image", image=image, num_images=2) for image in images]
    assert len({request.batch_key for request in requests}) == 2
    size = {"width": SIDE, "height": SIDE}
    for request, image in zip(requests, images, strict=True):
        assert same_bits(loaded.both(request), loaded.by_stock(image=image, **size))
        made = loaded.static.generate([Row(request, seed) for seed in request.seeds], ignore_steps)
        assert same_image(made[0], loaded.by_stock(image=image, **size))
        assert same_image(made[1], loaded.by_stock(image=image, seed=4, **size))


def test_a_task_that_fails_its_check_is_not_offered(monkeypatch, caplog):
    monkeypatch.setattr(
        "imagegen_worker.backends.diffusers.task_pipelines.has_unusual_channels", lambda pipeline: False
    )
    loaded = load_builtin()  # its 8 channels are refused by the pipeline itself
    assert list(loaded.model.tasks) == ["text-to-image", "image-to-image"]
    assert "the model can't be used for inpainting: ValueError: The unet" in caplog.text
    with pytest.raises(InvalidRequestError, match="supports text-to-image and image-to-image, not inpainting"):
        loaded.model.check(make_request(prompt="p", seed=1, inputs=["image", "mask_image"]))


def test_a_wrapped_unet_generates_the_same_image(load):
    pipeline = AUTO["inpainting"].from_pipe(load("sd").stock)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for unet in (pipeline.unet, UNetWithLatentChannels(pipeline.unet)):
        object.__setattr__(pipeline, "unet", unet)
        generator = torch.Generator("cpu").manual_seed(1)
        images.append(
            pipeline("a cat", **STARTS["inpainting"], num_inference_steps=4, generator=generator).images[0]
        )
    assert same_bits(images[0], images[1])
    assert load_builtin().model.tasks["inpainting"].strength == 1.0


def test_a_private_copy_of_a_pipeline_shares_the_model_behind_a_wrapped_unet(load):
    pipeline = AUTO["inpainting"].from_pipe(load("sd").stock)
    unet = pipeline.unet
    object.__setattr__(pipeline, "unet", UNetWithLatentChannels(unet))
    copied = private_copy(pipeline).unet
    assert copied._unet is unet
    assert copied.config.in_channels == 4
