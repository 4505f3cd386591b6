"""Requests with several reference images, beside requests with one and without any, for the same model."""

import io

import numpy as np
import pytest
from PIL import Image

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.request import make_request
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import make_images, stock_image


def reference(width, height, turn):
    return Image.linear_gradient("L").rotate(turn).resize((width, height)).convert("RGB")


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def request(*images):
    frames = tuple(map(encoded, images))
    if len(images) == 1:
        return {"inputs": ["image"], "frames": frames}
    paths = [f"images[{index}]" for index in range(len(images))]
    return {"images": [None] * len(images), "inputs": paths, "frames": frames} if images else {}


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_references_give_the_stock_image_beside_other_requests(saved, batching):
    first, second = reference(64, 96, 0), reference(128, 64, 90)
    given = [(), (first, second), (reference(64, 64, 180),), (second, first)]
    _, images = make_images(
        saved("flux2-klein"), *(request(*each) for each in given), max_batch_size=4, batching=batching
    )
    pipeline = PIPELINES["flux2-klein"]()
    pipeline.set_progress_bar_config(disable=True)
    for references, image in zip(given, images, strict=True):
        named = {} if not references else {"image": [*references] if len(references) > 1 else references[0]}
        stock = np.asarray(stock_image(pipeline, **named), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - stock).max() <= 1
    assert np.any(np.asarray(images[1]) != np.asarray(images[3])), "the order of the references matters"


def test_a_model_reports_how_many_references_it_accepts(saved):
    model, _ = make_images(saved("flux2-klein"))
    assert model.capabilities().parameters["images"].maximum == 4
    model.check(make_request(prompt="x", seed=1, **named(4)))
    with pytest.raises(
        InvalidRequestError, match=r"images: the model .* accepts at most 4 reference images; got 5"
    ):
        model.check(make_request(prompt="x", seed=1, **named(5)))


def test_a_model_without_references_says_what_it_accepts(saved):
    model, _ = make_images(saved("flux"))
    assert "images" not in model.capabilities().parameters
    with pytest.raises(InvalidRequestError, match=r"accepts one image, as `image`, and no references; got 2"):
        model.check(make_request(prompt="x", seed=1, **named(2)))


def named(count):
    return {"images": [None] * count, "inputs": [f"images[{index}]" for index in range(count)]}
