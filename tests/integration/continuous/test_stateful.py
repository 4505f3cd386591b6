"""Pipelines that keep state between forwards, in their parts or in shared models, give the same images."""

import pytest

from tests.integration.continuous.helpers import TOLERANCE, difference, requests, run, settled, stock
from tests.stateful_families import STATEFUL_FAMILIES

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # about options that a pipeline passes to its inner ones
]


UNBOUNDED = 1e-3
"""Tolerance, over the largest value, for images beyond 1: the random decoder of Kandinsky enlarges rounding."""


def same(tasks, expected):
    """Whether the images equal the expected ones but for rounding."""
    for task, image in zip(tasks, expected, strict=True):
        largest = image.abs().max().item()
        assert difference(task, image) <= (TOLERANCE if largest <= 1 else UNBOUNDED * largest)
    return True


@pytest.mark.parametrize("name", ["hunyuan-image", "kandinsky-combined"])
def test_calls_share_no_state_of_guiders_and_inner_pipelines(name, make_batcher):
    family = STATEFUL_FAMILIES[name]()
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    batcher = make_batcher(family.pipeline)
    assert same(run(batcher, calls, (0, 1, 2, 3), events=events), expected)
    settled(batcher, family)
    assert same(run(batcher, calls, events=events), expected)
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 4
