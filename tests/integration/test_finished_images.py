"""Images that calls return as tensors equal those that diffusers converts to PIL itself."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from imagegen_worker.backends import completed
from imagegen_worker.backends.diffusers.finished_images import finished_images, returns_tensors
from tests.families import FAMILIES


def converted(values):
    """Return images of values from -1 to 1, by diffusers and by the worker."""
    processor = VaeImageProcessor()
    return processor.postprocess(values, "pil"), finished_images(processor.postprocess(values, "pt"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_are_rounded_as_diffusers_does(dtype, channels):
    halves = (torch.arange(2 * 16 * 16 * channels) % 511 / 510).reshape(2, channels, 16, 16) * 2 - 1
    for values in (halves, torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))):
        for theirs, ours in zip(*converted(values.to(dtype)), strict=True):
            image = completed(ours)
            assert image.mode == theirs.mode
            assert np.array_equal(np.asarray(image), np.asarray(theirs))


def test_images_that_are_none_of_tensors_are_unchanged():
    image = Image.new("RGB", (8, 8))
    assert finished_images([image])[0] is image


def test_calls_that_treat_the_type_of_their_images_are_left_alone():
    assert all(returns_tensors(FAMILIES[name]().pipeline) for name in ("sd", "sdxl-inpaint", "flux", "z-image"))

    class Processor(VaeImageProcessor):
        def postprocess(self, *args, **kwargs):
            return super().postprocess(*args, **kwargs)

    pipeline = FAMILIES["sd"]().pipeline
    pipeline.image_processor = Processor()
    assert not returns_tensors(pipeline)
    upscaler = StableDiffusionUpscalePipeline.__new__(StableDiffusionUpscalePipeline)
    object.__setattr__(upscaler, "image_processor", VaeImageProcessor())
    assert not returns_tensors(upscaler)  # adds a watermark to PIL images
    del pipeline.image_processor
    assert not returns_tensors(pipeline)
