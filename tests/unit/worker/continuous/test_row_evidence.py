"""Calls that differ in an argument share a forward only if the model was seen to read it row by row."""

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends.diffusers import digests  # noqa: E402
from imagegen_worker.backends.diffusers.batched_module import BatchedModule  # noqa: E402
from imagegen_worker.backends.diffusers.digests import row_digest  # noqa: E402
from imagegen_worker.backends.diffusers.shared_forward import FIRST_RECHECK  # noqa: E402
from imagegen_worker.engines.continuous.limits import RowCosts  # noqa: E402
from imagegen_worker.engines.continuous.scheduler import BatchScheduler  # noqa: E402

SQUARE, PORTRAIT, LANDSCAPE = (torch.tensor([[ids]]) for ids in ([1, 2, 3, 4], [1, 1, 2, 2], [1, 2, 1, 2]))


class Rotating(torch.nn.Module):
    """Adds a term of position ids and one of a time to each row; `read` selects how it reads the ids."""

    def __init__(self, read, strength=1.0):
        super().__init__()
        self.read = read
        self.strength = strength

    def forward(self, x, ids, time):
        return (x + self.strength * self.read(ids.float()).sin().mean(1) + time[:, None].float().cos(),)


READINGS = {
    "row by row": lambda ids: ids,
    "row 0": lambda ids: ids[:1],
    "the last row": lambda ids: ids[-1:],
    "the mean": lambda ids: ids.mean(0, keepdim=True),
    "the largest": lambda ids: ids.amax(0, keepdim=True),
}


def call(ids, time=3, rows=1):
    return {"x": torch.randn(rows, 4), "ids": ids.repeat(rows, 1, 1), "time": torch.tensor([time])}


def run_together(module, *rounds, steps=1):
    """Run the calls of each round together; return the largest error, and the rows of the last forwards."""
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    error = 0.0
    with torch.no_grad():
        module(**call(SQUARE))  # shows that it keeps no state
        for calls in rounds:
            expected = [stage._forward(**each)[0] for each in calls]
            events = []
            scheduler = BatchScheduler(observe=events.append, costs=RowCosts(gain=-1.0))  # however long they take
            tasks = [
                scheduler.start(lambda each=each: [module(**each)[0] for _ in range(steps)]) for each in calls
            ]
            while scheduler.step():
                pass
            for task, output in zip(tasks, expected, strict=True):
                assert task.error is None
                error = max(error, *((result - output).abs().max().item() for result in task.result))
    stage.remove()
    return error, [event.rows for event in events]


@pytest.mark.parametrize("strength", [1.0, 0.003], ids=["strong", "within the tolerance of outputs"])
@pytest.mark.parametrize("reading", READINGS)
def test_position_ids_of_one_image_never_reach_another(reading, strength):
    torch.manual_seed(0)
    module = Rotating(READINGS[reading], strength)
    squares, mixed = (
        [call(SQUARE), call(SQUARE, 5)],
        [call(PORTRAIT), call(LANDSCAPE, 5), call(PORTRAIT, 7, rows=2)],
    )
    error, rows = run_together(module, squares, mixed, mixed)
    assert error < 1e-6
    # The calls with equal ids share a forward in any case.
    assert rows == ([4] if reading == "row by row" else [3, 1])


class Rounding(torch.nn.Module):
    """Reads its rows independently; joined, its outputs differ by rounding from those of a call alone."""

    def forward(self, x, time):
        noise = 4e-7 * torch.sin(1e7 * x * len(x))
        return (x + noise + time[:, None].float().cos(),)


def test_an_effect_the_size_of_rounding_decides_nothing():
    torch.manual_seed(0)
    module = Rounding()
    base = torch.randn(1, 64)

    def at(x, time):
        return {"x": x, "time": torch.tensor([time])}

    stage = BatchedModule("toy", module, "forward", is_denoiser=True)

    def rows_of(calls):
        events = []
        scheduler = BatchScheduler(observe=events.append, costs=RowCosts(gain=-1.0))
        for each in calls:
            scheduler.start(lambda each=each: module(**each))
        while scheduler.step():
            pass
        return [event.rows for event in events]

    with torch.no_grad():
        module(**at(base, 1))  # shows that it keeps no state
        # Two calls with one prompt and one seed: the latents differ in their last bits only.
        assert rows_of([at(base, 3), at(base + 3e-7, 3)]) == [2]
        different = [at(base, 3), at(torch.randn(1, 64), 5)]
        shared = [rows_of(different) for _ in range(8)]
    stage.remove()
    assert shared[-1] == [2]


def test_timesteps_are_read_row_by_row_or_must_be_equal():
    torch.manual_seed(0)

    class First(Rotating):
        def forward(self, x, ids, time):
            return super().forward(x, ids, time[:1])

    module = First(READINGS["row by row"])
    equal, unlike = [call(SQUARE), call(SQUARE)], [call(SQUARE), call(SQUARE, 8), call(SQUARE, 8)]
    error, rows = run_together(module, equal, unlike, unlike)
    assert error < 1e-6
    assert sorted(rows) == [1, 2]


def test_shared_forwards_are_compared_again_later():
    torch.manual_seed(0)
    module = Rotating(READINGS["row by row"])
    mixed = [call(PORTRAIT), call(LANDSCAPE, 5)]
    assert run_together(module, mixed, mixed)[1] == [2]
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    events = []
    scheduler = BatchScheduler(observe=events.append, costs=RowCosts(gain=-1.0))  # however long they take
    with torch.no_grad():
        module(**call(SQUARE))
        for each in mixed:
            scheduler.start(lambda each=each: [module(**each) for _ in range(3 * FIRST_RECHECK)])
        turned = False
        while scheduler.step():
            if not turned and [event.rows for event in events[-20:]] == [2] * 20:
                module.read, turned = READINGS["row 0"], True  # as no model should
    stage.remove()
    assert turned
    assert sum(event.rows == 2 for event in events) <= FIRST_RECHECK
    assert events[-1].rows == 1


def test_equal_rows_have_the_digest_of_one_row():
    assert row_digest(PORTRAIT) == row_digest(PORTRAIT.repeat(3, 1, 1)) != row_digest(LANDSCAPE)
    assert row_digest(torch.tensor(3)) == row_digest(torch.tensor([3.0, 3.0])) != row_digest(torch.tensor([3, 4]))
    assert row_digest([PORTRAIT, PORTRAIT]) == row_digest([PORTRAIT])


def test_a_digest_is_computed_once_for_each_version_of_a_tensor(monkeypatch):
    reads = []
    read = digests._read_rows
    monkeypatch.setattr(digests, "_read_rows", lambda tensor, dim: reads.append(tensor) or read(tensor, dim))
    ids = PORTRAIT.clone()
    before = [row_digest(ids) for _ in range(3)]
    ids.add_(1)
    assert row_digest(ids) not in before
    assert len(reads) == 2
