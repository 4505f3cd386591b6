"""The host waits for the device a bounded number of times for an image, and not at all in a steady step."""

import pytest
import torch

from imagegen_worker.backends.diffusers.finished_images import finished_images
from imagegen_worker.backends.diffusers.host_copies import HostCopies, host_copy
from tests.families import FAMILIES
from tests.integration.continuous.helpers import requests, run, settled
from tests.integration.models.worker import LoadedWorker
from tests.rehearsal.card import move_to_card

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ["sd", "sdxl", "sd3", "flux", "z-image", "flux2-klein"]
WAITS_FOR_AN_IMAGE = 3


@pytest.mark.parametrize("name", NAMES)
def test_the_host_does_not_wait_in_a_steady_step(name, card, make_batcher):
    family = FAMILIES[name]()
    move_to_card(family.pipeline)
    batcher = make_batcher(family.pipeline)
    settled(batcher, family)
    unlike = [dict(call, guidance_scale=5.0) for call in requests(family)]  # as in the trial of a worker
    run(batcher, unlike)
    counts = {}
    for steps in (4, 3, 13):
        calls = [dict(call, num_inference_steps=steps) for call in unlike]
        card.synchronisations.clear()
        run(batcher, calls)
        counts[steps] = sum(card.synchronisations.values())
    assert counts[13] <= counts[3], card.synchronisations


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_at_most_three_times_for_an_image(name, card, make_batcher):
    family = FAMILIES[name]()
    move_to_card(family.pipeline)
    batcher = make_batcher(family.pipeline)
    settled(batcher, family)
    calls = [dict(call, guidance_scale=5.0) for call in requests(family)]
    run(batcher, calls)  # as in the trial of a worker
    calls = [dict(call, num_inference_steps=3) for call in calls]
    run(batcher, [dict(call, prompt=f"dog {number}") for number, call in enumerate(calls)])
    card.synchronisations.clear()
    new = [dict(call, prompt=f"cat {number}") for number, call in enumerate(calls)]
    images = [finished_images([task.result])[0] for task in run(batcher, new)]
    assert sum(card.synchronisations.values()) <= len(new) * WAITS_FOR_AN_IMAGE, card.synchronisations
    assert all(callable(image) for image in images)


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_a_worker_waits_at_most_three_times_for_an_image(batching, card, model_folder):
    worker = LoadedWorker(model_folder("sd"), device="cuda", dtype="float32", batching=batching)
    prompts = [{"prompt": f"cat {number}", "seed": number} for number in range(4)]
    try:
        worker.run(*prompts[:2])  # in pairs, as below
        card.synchronisations.clear()
        images = worker.run(*prompts[2:])
        assert sum(card.synchronisations.values()) <= len(images) * WAITS_FOR_AN_IMAGE, card.synchronisations
        assert all(callable(image) for image in images)
    finally:
        worker.close()


def test_small_tensors_are_read_on_the_host(card):
    with HostCopies() as copies:
        ids = torch.tensor([[3, 1], [2, 0]]).to("cuda")
        steps = torch.tensor([4.0, 3.0, 2.0], device="cuda")
        twice = torch.cat([ids, ids])[1:]
        assert twice.tolist() == [[2, 0], [3, 1], [2, 0]]
        assert (steps == steps[1]).nonzero().item() == 1
        assert [step.item() for step in steps] == [4.0, 3.0, 2.0]
        assert bool((ids > 0).all()) is False
        assert not card.synchronisations
        ids += 1
        assert ids.tolist() == [[4, 2], [3, 1]]  # the host's copy is outdated
        assert (steps / 3).tolist() == pytest.approx([4 / 3, 1, 2 / 3])
        with copies.paused():
            assert torch.tensor([1.0], device="cuda").item() == 1.0
        assert host_copy(torch.randn(64 * 1024).to("cuda")) is None
    assert sum(card.synchronisations.values()) == 4, card.synchronisations
    assert host_copy(steps) is not None
