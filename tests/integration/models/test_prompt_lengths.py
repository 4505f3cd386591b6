"""Prompts of different lengths share a pipeline call only where that changes no image."""

import json

import numpy as np
import pytest

from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.config import LoadOptions
from tests.families import FAMILIES
from tests.integration.models.worker import make_images, stock_image
from tests.padding_families import PADDING_FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KINDS = {**PADDING_FAMILIES, "sd": FAMILIES["sd"]}
ONE_TOKEN, LONG = "a", "a long dog in the rain, at night, " * 12


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    KINDS[kind]().pipeline.save_pretrained(tmp_path)
    small = {"width": 64, "height": 64, "num_inference_steps": 2}
    (tmp_path / "imagegen.json").write_text(json.dumps(small))
    return tmp_path


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_images_equal_those_generated_alone(kind, folder, batching):
    family = KINDS[kind]()
    fields = [{"prompt": ONE_TOKEN}, {"prompt": LONG}]
    if family.negative_prompt:
        fields += [{"prompt": ONE_TOKEN, "negative_prompt": LONG}, {"prompt": LONG, "negative_prompt": ONE_TOKEN}]
    _, images = make_images(folder, *fields, batching=batching)
    for image, request in zip(images, fields, strict=True):
        apart = np.asarray(image, dtype=int) - np.asarray(stock_image(family.pipeline, **request), dtype=int)
        assert abs(apart).max() <= 1, "of 255: rounding"


@pytest.mark.parametrize("backend_class", [DiffusersBackend, StepwiseDiffusers])
def test_equal_prompts_share_a_call_in_any_case(kind, folder, backend_class):
    backend = backend_class(folder, "tiny", LoadOptions(device="cpu", threads=1), max_batch_size=2)
    backend.load()
    long, again, short = (
        backend.call_key(backend._loaded.trial(seed=seed, prompt=prompt).request)
        for seed, prompt in enumerate((LONG, LONG, ONE_TOKEN))
    )
    backend.close()
    assert long is not None
    assert long == again
    assert (long == short) == (kind not in PADDING_FAMILIES)


def test_a_model_that_keeps_prompts_of_other_lengths_apart_is_named_with_the_reason(kind, folder, caplog):
    backend = StepwiseDiffusers(folder, "tiny", LoadOptions(device="cpu", threads=1), max_batch_size=2)
    reason = backend.load().unshared
    backend.close()
    apart = kind in {"omnigen", "qwen-image-2.1"}
    assert bool(reason) == apart
    assert ("the model does not share all forwards" in caplog.text) == apart
