"""The images of the pretended card equal those of the CPU."""

import gc

import pytest

from tests.equality import pixel_difference
from tests.families import FAMILIES
from tests.integration.continuous.helpers import TOLERANCE, requests, run, stock
from tests.integration.models.worker import make_images
from tests.rehearsal.card import move_to_card

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ["sd", "sdxl", "sd3", "flux", "z-image"]
REQUESTS = ({}, {"prompt": "two dogs in the rain", "num_inference_steps": 4, "seed": 5}, {"seed": 6})


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_generates_the_images_of_the_cpu(name, card, make_batcher):
    family = FAMILIES[name]()
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    move_to_card(family.pipeline)
    tasks = run(make_batcher(family.pipeline), calls, (0, 0, 1, 2))
    for task, image in zip(tasks, expected, strict=True):
        assert task.error is None
        assert task.result.device.type == "cuda"
        assert (task.result.cpu() - image).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_worker_generates_the_images_of_the_cpu(name, card, model_folder):
    folder = model_folder(name)
    _, expected = make_images(folder, *REQUESTS, dtype="float32")
    assert card.memory.peak == 0
    _, images = make_images(folder, *REQUESTS, dtype="float32", device="cuda")
    assert card.memory.peak > 0
    for image, other in zip(images, expected, strict=True):
        assert pixel_difference(image, other) <= 1
    gc.collect()
    assert card.memory.used == 0
