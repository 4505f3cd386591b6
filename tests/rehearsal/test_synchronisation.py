"""The host waits for the device a bounded number of times for an image, and not at all in a steady step."""

import pytest

from tests.families import FAMILIES
from tests.integration.continuous.helpers import requests, run, settled
from tests.rehearsal.card import move_to_card

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "z-image"])
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
