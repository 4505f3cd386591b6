"""A disturbed comparison of a shared forward is logged, counted and retried; it disables sharing for a while only.

The comparisons of later forwards have a bounded cost.
"""

import logging
from itertools import groupby, pairwise

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends.diffusers.batched_module import BatchedModule  # noqa: E402
from imagegen_worker.backends.diffusers.implied_masks import ImpliedMasks  # noqa: E402
from imagegen_worker.backends.diffusers.layouts import describe  # noqa: E402
from imagegen_worker.backends.diffusers.shared_forward import (  # noqa: E402
    FIRST_RECHECK,
    MAX_RECHECK,
    CallKind,
)
from imagegen_worker.backends.diffusers.sharing_report import MostRows  # noqa: E402
from imagegen_worker.engines.continuous.scheduler import BatchScheduler  # noqa: E402
from imagegen_worker.engines.continuous.unshareable import FIRST_CALLS, MAX_CALLS  # noqa: E402


class Disturbed(torch.nn.Module):
    """Computes each row by itself, except in the shared forwards whose number, from 1 on, `disturb` accepts."""

    def __init__(self, disturb):
        super().__init__()
        self.disturb = disturb
        self.counts = iter(range(1, 10**9))

    def forward(self, x, time):
        output = x + time[:, None].float().cos()
        if len(x) == 1 or not self.disturb(next(self.counts)):
            return (output,)
        return (self.spoilt(output, time),)

    def spoilt(self, output, time):
        return output + 1.0


class Mixing(Disturbed):
    """Reads the time of row 0 in the disturbed forward."""

    def spoilt(self, output, time):
        return output - time[:, None].float().cos() + time[:1, None].float().cos()


def run(model, calls, steps):
    """Run calls of some steps, each in a task; return the events, after a check of all results."""
    stage = BatchedModule("transformer", model, "forward", is_denoiser=True)
    events = []
    scheduler = BatchScheduler(observe=events.append, costs=MostRows())
    expected = [call["x"] + call["time"][:, None].float().cos() for call in calls]
    with torch.no_grad():
        model(**calls[0])  # shows that it keeps no state
        tasks = [
            scheduler.start(lambda call=call: [model(**call)[0] for _ in range(steps)], tag=index)
            for index, call in enumerate(calls)
        ]
        while scheduler.step():
            continue
    stage.remove()
    for task, output in zip(tasks, expected, strict=True):
        assert task.error is None, task.error
        for result in task.result:
            torch.testing.assert_close(result, output)
    return events


@pytest.fixture
def calls():
    torch.manual_seed(0)
    return [{"x": torch.randn(1, 4), "time": torch.tensor([time])} for time in (1, 2)]


def test_a_mismatch_is_logged_with_model_shapes_and_size_and_counted_by_reason(calls, caplog):
    with caplog.at_level(logging.WARNING):
        events = run(Disturbed(lambda number: number == FIRST_RECHECK), calls, steps=FIRST_RECHECK + 4)
    (record,) = caplog.records
    words = ("transformer", "model=Disturbed", "calls=2", "difference=0.", "x=(1, 4)", "time=(1,)")
    assert all(word in record.getMessage() for word in words), record.getMessage()
    reasons = [event.fallback for event in events if event.fallback]
    assert reasons[:2] == ["mismatch", "mismatch"], "one for each call of the forward"
    assert set(reasons[2:]) == {"unequal"}


@pytest.mark.parametrize(("model", "number"), [(Disturbed, FIRST_RECHECK), (Disturbed, 1), (Mixing, 1)])
def test_a_disturbed_check_disables_sharing_for_a_number_of_calls_only(model, number, calls):
    events = run(model(lambda count: count == number), calls, steps=number + 2 * FIRST_CALLS)
    shared = [len(event.tasks) == 2 for event in events]
    apart = max(len(list(run)) for is_shared, run in groupby(shared) if not is_shared)
    assert FIRST_CALLS // 2 <= apart <= 2 * FIRST_CALLS
    assert sum(shared) > number + FIRST_CALLS // 2, "calls share again"


def test_an_argument_that_must_be_equal_is_logged(calls, caplog):
    with caplog.at_level(logging.INFO):
        run(Mixing(lambda count: True), calls, steps=4)
    texts = {record.getMessage() for record in caplog.records}
    assert texts == {"calls share a forward only if an argument is equal model=Mixing argument=time"}


def test_a_model_that_keeps_failing_is_tried_ever_less_often(calls):
    seen = []

    def disturb(number):
        seen.append(number)
        return True

    run(Disturbed(disturb), calls, steps=8 * FIRST_CALLS)
    assert 2 <= len(seen) <= 6, "after 64, 128, 256 and 512 calls"
    assert MAX_CALLS >= 8 * FIRST_CALLS


def test_masks_are_implied_again_after_a_number_of_calls():
    masks = ImpliedMasks()
    call = {"encoder_hidden_states": torch.zeros(1, 3, 4), "encoder_hidden_states_mask": None}
    masks.reject()
    implied = [masks.add(call)["encoder_hidden_states_mask"] is not None for _ in range(FIRST_CALLS + 1)]
    assert implied == [False] * FIRST_CALLS + [True]


def test_forwards_are_compared_at_growing_distances_for_ever():
    call = {"x": torch.zeros(1, 4)}
    described = describe(call)
    kind = CallKind(described.listed, described.layout, ())
    compared = []
    for number in range(1, 200_000):
        if kind.is_due("case"):
            compared.append(number)
            kind.passed("case")
    gaps = [later - earlier for earlier, later in pairwise(compared)]
    assert gaps[0] <= FIRST_RECHECK
    assert all(gap <= MAX_RECHECK for gap in gaps), "no comparison is the last one"
    assert gaps[-1] == MAX_RECHECK
    assert len(compared) <= 8 + 200_000 / MAX_RECHECK
