"""Masks that pipelines leave out, and hooks that read outputs inside a text encoder."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends.diffusers.batched_module import BatchedModule  # noqa: E402
from imagegen_worker.backends.diffusers.implied_masks import ImpliedMasks, pads, unneeded  # noqa: E402
from imagegen_worker.backends.diffusers.shared_modules import ModuleGuard  # noqa: E402
from imagegen_worker.backends.diffusers.sharing_report import MostRows  # noqa: E402
from imagegen_worker.engines.continuous.cache import BoundedCache  # noqa: E402
from imagegen_worker.engines.continuous.calls import current_task  # noqa: E402
from imagegen_worker.engines.continuous.scheduler import BatchScheduler  # noqa: E402

TEXT = "encoder_hidden_states"
MASK = f"{TEXT}_mask"


class Denoiser(torch.nn.Module):
    """Adds the mean of the text that counts; `obeys` False: it ignores the mask."""

    def __init__(self, seen, obeys=True):
        super().__init__()
        self.see = seen.append  # a list in the module would be state between its forwards
        self.obeys = obeys

    def forward(self, hidden_states, encoder_hidden_states, encoder_hidden_states_mask=None):
        self.see((len(hidden_states), encoder_hidden_states_mask))
        text = encoder_hidden_states
        if encoder_hidden_states_mask is None or not self.obeys:
            return hidden_states + text.mean(dim=1)
        kept = encoder_hidden_states_mask.unsqueeze(-1).to(text.dtype)
        return hidden_states + (text * kept).sum(dim=1) / kept.sum(dim=1)


def run(model, lengths, steps=6):
    """Run one task for each text length for some steps; return the stage and the images of each forward."""
    module = BatchedModule("transformer", model, "forward", is_denoiser=True)
    shared = []
    scheduler = BatchScheduler(observe=lambda event: shared.append(event.images), costs=MostRows())

    def call(seed, length):
        generator = torch.Generator().manual_seed(seed)
        latents, text = torch.randn(1, 4, generator=generator), torch.randn(1, length, 4, generator=generator)
        for _ in range(steps):
            latents = model.forward(latents, encoder_hidden_states=text, encoder_hidden_states_mask=None)
        return latents

    with torch.no_grad():
        scheduler.start(partial(call, 9, 3))  # shows that forwards change no state
        while scheduler.step():
            continue
        shared.clear()
        tasks = [scheduler.start(partial(call, seed, length)) for seed, length in enumerate(lengths)]
        while scheduler.step():
            continue
        module.remove()
        alone = [call(seed, length) for seed, length in enumerate(lengths)]
    for task, expected in zip(tasks, alone, strict=True):
        assert task.error is None, task.error
        torch.testing.assert_close(task.result, expected)
    return shared


def test_texts_of_other_lengths_share_forwards_with_a_mask_that_they_imply():
    shared = run(Denoiser([]), [3, 7])
    assert shared[-1] == 2


def test_texts_of_one_length_run_without_a_mask():
    seen = []
    shared = run(Denoiser(seen), [5, 5])
    assert shared[-1] == 2
    assert [mask for rows, mask in seen if rows == 2][-1] is None


def test_a_model_that_ignores_the_mask_keeps_apart_what_has_other_lengths():
    shared = run(Denoiser([], obeys=False), [3, 7, 3])
    assert set(shared) == {1, 2}, "only the two of equal length share"


def test_a_mask_has_the_type_of_those_that_were_seen():
    masks = ImpliedMasks()
    text = torch.zeros(1, 3, 4)
    assert masks.add({TEXT: text, MASK: None})[MASK].dtype == torch.int64
    masks.add({TEXT: text, MASK: torch.ones(1, 3, dtype=torch.bool)})
    assert masks.add({TEXT: text, MASK: None})[MASK].dtype == torch.bool
    assert masks.add({"image": text, "image_mask": None, "mask": None, "attention_mask": None})["mask"] is None
    masks.reject()
    assert masks.add({TEXT: text, MASK: None})[MASK] is None


def test_a_mask_that_the_pipeline_does_not_pass_is_implied_where_the_model_has_one():
    text = torch.zeros(1, 3, 4)
    masks = ImpliedMasks("attention_mask")
    implied = masks.add({TEXT: text})
    assert implied["attention_mask"].tolist() == [[1, 1, 1]]
    assert unneeded([implied, implied]) == ["attention_mask"]
    assert "attention_mask" not in ImpliedMasks().add({TEXT: text})
    masks.reject()
    assert "attention_mask" not in masks.add({TEXT: text})


def test_masks_are_needed_for_other_lengths_only():
    masks = ImpliedMasks()
    short, long = (masks.add({TEXT: torch.zeros(1, length, 4), MASK: None}) for length in (3, 7))
    real = {TEXT: torch.zeros(1, 3, 4), MASK: torch.ones(1, 3, dtype=torch.int64)}
    assert unneeded([short, short]) == [MASK]
    assert unneeded([short, long]) == unneeded([short, real]) == unneeded([real, real]) == []
    assert pads([short, long])
    assert pads([short, real])
    assert not pads([short, short])
    assert not pads([real, real])


class Encoder(torch.nn.Module):
    """A text encoder with an inner layer that a pipeline may read by a hook."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, input_ids):
        return self.inner(input_ids) * 2


@pytest.mark.parametrize("count", [1, 3])
def test_a_hook_sees_the_forward_of_its_own_call(count):
    model = Encoder()
    module = BatchedModule("text_encoder", model, "forward", cache=BoundedCache(2**20))
    scheduler = BatchScheduler()

    def call(prompt):
        seen = []
        handle = model.inner.register_forward_hook(lambda part, args, output: seen.append(output.clone()))
        try:
            model.forward(prompt)
        finally:
            handle.remove()
        return seen

    prompt = torch.ones(1, 4)
    with torch.no_grad():
        for _ in range(2):  # the second would be a hit of the cache
            tasks = [scheduler.start(partial(call, prompt)) for _ in range(count)]
            while scheduler.step():
                continue
            for task in tasks:
                assert task.error is None, task.error
                assert task.result, "the hook ran"
                assert all(len(output) == 1 for output in task.result), "no rows of others"
    module.remove()


class Rewriting(torch.nn.Module):
    """A text encoder that generates text, and keeps positions in the model between its forwards."""

    def __init__(self):
        super().__init__()
        self.offset = 0

    def generate(self, start):
        self.offset, value = start, torch.full((1, 1), float(start))
        for _ in range(3):
            value = self.forward(value)
        return value

    def forward(self, input_ids):
        return input_ids + self.offset


def test_no_other_call_runs_between_the_forwards_of_a_generated_text():
    model = Rewriting()
    module = BatchedModule("text_encoder", model, "forward", cache=BoundedCache(2**20))
    scheduler = BatchScheduler()
    with torch.no_grad():
        tasks = [scheduler.start(partial(model.generate, start)) for start in (1, 2, 3)]
        while scheduler.step():
            continue
    module.remove()
    assert "generate" not in vars(model)
    assert [task.result.item() for task in tasks] == [4, 8, 12]


def test_what_a_generated_text_changes_in_the_model_does_not_count_as_a_change_by_the_call():
    model = Rewriting()
    denoiser = Denoiser([])
    guard = ModuleGuard(lambda: 0)
    modules = [
        BatchedModule("text_encoder", model, "forward", cache=BoundedCache(2**20), guard=guard),
        BatchedModule("transformer", denoiser, "forward", is_denoiser=True, guard=guard),
    ]
    scheduler = BatchScheduler()

    def call(start):
        with guard.call(current_task(), "kind"):
            text = model.generate(start).reshape(1, 1, 1)
            return denoiser.forward(torch.zeros(1, 1), encoder_hidden_states=text)

    with torch.no_grad():
        tasks = [scheduler.start(partial(call, start)) for start in (1, 2)]
        while scheduler.step():
            continue
    for module in modules:
        module.remove()
    assert [task.result.item() for task in tasks] == [4, 8]
    assert not guard.serial


def test_a_hook_that_is_removed_after_its_forward_is_no_change_by_the_call():
    model, denoiser, guard = Encoder(), Denoiser([]), ModuleGuard(lambda: 0)
    modules = [
        BatchedModule("text_encoder", model, "forward", cache=BoundedCache(2**20), guard=guard),
        BatchedModule("transformer", denoiser, "forward", is_denoiser=True, guard=guard),
    ]
    scheduler = BatchScheduler()

    def call():
        with guard.call(current_task(), "kind"):
            handle = model.inner.register_forward_hook(lambda part, args, output: args[0])
            text = model.forward(torch.ones(1, 1, 4))
            handle.remove()
            return denoiser.forward(torch.zeros(1, 4), encoder_hidden_states=text)

    with torch.no_grad():
        tasks = [scheduler.start(call) for _ in range(2)]
        while scheduler.step():
            continue
    for module in modules:
        module.remove()
    assert [task.result.tolist() for task in tasks] == [[[2.0] * 4]] * 2
    assert not guard.serial


class Strict(torch.nn.Module):
    """Takes one timestep for each row; some pipelines pass too few for several prompts."""

    def forward(self, hidden_states, timestep):
        return hidden_states * timestep.reshape(-1, 1)


def test_a_call_that_fails_proves_nothing_about_its_arguments():
    model, shared = Strict(), []
    module = BatchedModule("transformer", model, "forward", is_denoiser=True)
    scheduler = BatchScheduler(observe=lambda event: shared.append(event.images), costs=MostRows())

    def call(rows, timesteps):
        for step in range(4):
            output = model.forward(torch.ones(rows, 4), torch.arange(float(timesteps)) + step)
        return output

    with torch.no_grad():
        for rows, timesteps in ((2, 2), (8, 2)):
            failing = scheduler.start(partial(call, rows, timesteps))
            while scheduler.step():
                continue
        assert isinstance(failing.error, RuntimeError)
        tasks = [scheduler.start(partial(call, 2, 2)) for _ in range(2)]
        while scheduler.step():
            continue
    module.remove()
    assert [task.error for task in tasks] == [None, None]
    assert shared[-1] == 2
