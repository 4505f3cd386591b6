"""Each rule of sharing is necessary: without it, and without the comparison that notices, images are wrong."""

import copy

import pytest
import torch

from imagegen_worker.backends.diffusers import layouts, outputs, pipeline_copy
from imagegen_worker.backends.diffusers.row_evidence import RowEvidence
from imagegen_worker.backends.diffusers.shared_forward import SharedForwards
from imagegen_worker.backends.diffusers.shared_modules import ModuleGuard
from tests.families import FAMILIES
from tests.integration.continuous.helpers import TOLERANCE, requests, run, settled, stock
from tests.stateful_families import STATEFUL_FAMILIES

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def ids_are_not_in_the_key(monkeypatch):
    monkeypatch.setattr(RowEvidence, "contents", lambda *_: ())
    monkeypatch.setattr(RowEvidence, "unproven", lambda *_: [])
    monkeypatch.setattr(layouts, "cached_digest", lambda tensor: b"")


def masks_are_dropped(monkeypatch):
    join = layouts._BatchedTensor.join

    def without_mask(layout, parts, rows):
        joined = join(layout, parts, rows)
        return (
            torch.ones_like(joined) if len(parts) > 1 and layout.has_free_length and joined.ndim == 2 else joined
        )

    monkeypatch.setattr(layouts._BatchedTensor, "join", without_mask)


def rows_are_swapped(monkeypatch):
    split = outputs.split

    def swapped(output, rows, *, listed):
        return split(output, rows, listed=listed)[::-1]

    monkeypatch.setattr(outputs, "split", swapped)


def state_is_shared(monkeypatch):
    monkeypatch.setattr(pipeline_copy.copy, "deepcopy", lambda part, memo=None: part)


def changes_of_models_are_not_noticed(monkeypatch):
    monkeypatch.setattr(ModuleGuard, "_look", lambda *_: None)


FAULTS = {
    ids_are_not_in_the_key: "flux2-klein",
    masks_are_dropped: "pixart-sigma",
    rows_are_swapped: "sdxl",
    state_is_shared: "hunyuan-image",
    changes_of_models_are_not_noticed: "sdxl-pag",
}


def largest_difference(family, make_batcher, calls, expected):
    """Return the largest difference of the images of a batch, or infinity if a call fails."""
    batcher = make_batcher(family.pipeline)
    settled(batcher, family)
    tasks = run(batcher, calls)
    if any(task.error is not None for task in tasks):
        return float("inf")
    return max((task.result - image).abs().max().item() for task, image in zip(tasks, expected, strict=True))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_changes_images(fault, make_batcher, monkeypatch):
    name = FAULTS[fault]
    family = {**FAMILIES, **STATEFUL_FAMILIES}[name]()
    sides = [(128, 64), (64, 128)] if name == "flux2-klein" else [(64, 64)] * 2
    calls = [
        dict(call, num_inference_steps=4, height=height, width=width)
        for call, (height, width) in zip(requests(family, 2), sides, strict=True)
    ]
    expected = [stock(family.pipeline, copy.copy(call), seed) for seed, call in enumerate(calls)]
    assert largest_difference(family, make_batcher, calls, expected) <= TOLERANCE
    fault(monkeypatch)
    monkeypatch.setattr(SharedForwards, "_compare", lambda *_, **__: None)
    assert largest_difference(family, make_batcher, calls, expected) > TOLERANCE
