"""Layouts of arguments, outputs, shared forwards of a module, and the detection of state."""

import pytest

torch = pytest.importorskip("torch")

from collections import OrderedDict  # noqa: E402

from imagegen_worker.backends.diffusers import layouts, outputs  # noqa: E402
from imagegen_worker.backends.diffusers.batched_module import BatchedModule  # noqa: E402
from imagegen_worker.backends.diffusers.module_state import StateMonitor  # noqa: E402
from imagegen_worker.engines.continuous.cache import BoundedCache  # noqa: E402
from imagegen_worker.engines.continuous.calls import NotShareableError  # noqa: E402
from imagegen_worker.engines.continuous.scheduler import BatchScheduler  # noqa: E402
from tests.equality import same_values  # noqa: E402


def joined(*calls, equal_lengths=False):
    """Join calls, given as their arguments; return None if they can't be."""
    described = [layouts.describe(call, equal_lengths=equal_lengths) for call in calls]
    if len({(each.listed, each.layout) for each in described}) > 1:
        return None
    return described[0].layout.join(calls, [each.rows for each in described])


def test_rows_are_concatenated_and_timesteps_expanded_to_one_per_row():
    x, y = torch.ones(2, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    both = joined({"sample": x, "timestep": torch.tensor(7)}, {"sample": y, "timestep": torch.tensor(3)})
    assert torch.equal(both["sample"], torch.cat([x, y]))
    assert both["timestep"].tolist() == [7, 7, 3]


def test_timesteps_of_different_dtypes_are_promoted():
    x = torch.ones(1, 4)
    both = joined({"x": x, "t": torch.tensor(7)}, {"x": x, "t": torch.tensor([3.5])})
    assert both["t"].tolist() == [7.0, 3.5]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(1, 5), "flag": None},
        {"x": torch.ones(1, 4, dtype=torch.float64), "flag": None},
        {"x": torch.ones(1, 4), "flag": True},
        {"x": torch.ones(1, 4), "flag": 1},
        {"x": torch.ones(1, 4)},
        {"x": torch.ones(1, 4), "flag": {"a": torch.ones(1, 2)}},
    ],
)
def test_calls_with_different_arguments_do_not_join(other):
    assert joined({"x": torch.ones(1, 4), "flag": None}, other) is None


def test_position_ids_are_shared_if_they_are_equal():
    x = torch.ones(1, 16, 4)
    call = {"x": x, "ids": torch.arange(48).reshape(16, 3)}
    assert torch.equal(joined(call, dict(call, ids=call["ids"].clone()))["ids"], call["ids"])
    assert joined(call, dict(call, ids=call["ids"] + 1)) is None


def test_shared_tensors_changed_in_place_are_read_again():
    call = {"x": torch.ones(1, 16, 4), "ids": torch.zeros(16, 3)}
    before = layouts.describe(call).layout
    call["ids"].add_(1)
    assert layouts.describe(call).layout != before


def test_dictionaries_are_joined_item_by_item():
    calls = [{"x": torch.ones(n, 4), "more": {"text": torch.full((n, 3), n), "none": None}} for n in (1, 2)]
    both = joined(*calls)
    assert both["more"]["text"].tolist() == [[1] * 3, [2] * 3, [2] * 3]
    assert both["more"]["none"] is None


def test_lists_of_one_tensor_per_row_are_concatenated():
    def call(rows, length):
        return {"x": [torch.zeros(16, 1, 8, 8)] * rows, "text": [torch.zeros(length, 32)] * rows}

    both = joined(call(1, 5), call(2, 7))
    assert len(both["x"]) == len(both["text"]) == 3
    assert joined(call(1, 5), call(2, 7), equal_lengths=True) is None
    assert joined(call(16, 5), call(16, 5))["x"][0].shape == (16, 1, 8, 8)  # 16 rows of 16 channels


def test_lists_of_tensors_with_all_rows_are_joined_item_by_item():
    calls = [{"x": torch.ones(n, 4), "residuals": [torch.ones(n, 5), torch.ones(n, 3)]} for n in (2, 1)]
    assert [tensor.shape for tensor in joined(*calls)["residuals"]] == [(3, 5), (3, 3)]


def test_texts_of_different_lengths_are_padded_only_with_a_mask():
    def call(length, **more):
        return {"x": torch.ones(1, 4, 8), "encoder_hidden_states": torch.ones(1, length, 6), **more}

    assert joined(call(3), call(5)) is None
    masked = [call(length, encoder_attention_mask=torch.ones(1, length)) for length in (3, 5)]
    both = joined(*masked)
    assert both["encoder_hidden_states"].shape == (2, 5, 6)
    assert both["encoder_attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert joined(*masked, equal_lengths=True) is None


def test_positions_along_several_axes_are_shared_if_they_are_equal():
    def call(width, rows=1):
        return {"x": torch.ones(rows, 1, 4, width), "positions": [torch.arange(n) for n in (1, 4, width)]}

    both = joined(call(6), call(6))["positions"]
    assert [axis.tolist() for axis in both] == [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert joined({**call(6), "x": torch.ones(1, 4)}, {**call(7), "x": torch.ones(1, 4)}) is None
    with pytest.raises(NotShareableError, match=r"of the argument positions\[1\]"):
        joined(call(6, rows=4))  # as many rows as positions


def test_texts_of_different_lengths_are_padded_where_the_model_gets_their_lengths():
    def call(length, **more):
        return {"x": torch.ones(1, 4, 8, 8), "text_bth": torch.ones(1, length, 6), **more}

    both = joined(*(call(length, text_lens=torch.tensor([length, length])[:1]) for length in (3, 5)))
    assert both["text_bth"].shape == (2, 5, 6)
    assert both["text_bth"][0, 3:].eq(0).all()
    assert both["text_lens"].tolist() == [3, 5]
    assert joined(*(call(length, image_lens=torch.tensor([length])) for length in (3, 5))) is None
    assert joined(*(call(length, text_lens=torch.tensor([float(length)])) for length in (3, 5))) is None


def test_unknown_argument_types_are_rejected():
    with pytest.raises(NotShareableError, match="opaque argument"):
        layouts.describe({"x": torch.ones(1, 4), "odd": object()})
    with pytest.raises(NotShareableError, match="no rows"):
        layouts.describe({"t": torch.tensor(1)})


class Output(OrderedDict):
    """Like the libraries' own outputs."""


@pytest.mark.parametrize(
    "output",
    [
        torch.arange(12).reshape(3, 4),
        (torch.arange(12).reshape(3, 4), None),
        Output(sample=torch.arange(12).reshape(3, 4)),
        {"sample": [torch.arange(3), torch.arange(6).reshape(3, 2)]},
    ],
)
def test_outputs_are_split_and_merged(output):
    parts = outputs.split(output, [1, 2], listed=False)
    assert all(type(part) is type(output) for part in parts)
    whole = outputs.merge(parts, [1, 2], listed=False)
    assert outputs.is_close(whole, output)
    assert outputs.is_close(outputs.split(whole, [1, 2], listed=False)[1], parts[1])


def test_lists_of_rows_are_split_by_rows():
    rows = [torch.full((3, 2), value) for value in range(3)]
    first, second = outputs.split((rows,), [1, 2], listed=True)
    assert [int(tensor[0, 0]) for tensor in second[0]] == [1, 2]
    assert len(first[0]) == 1
    assert len(outputs.merge([first, second], [1, 2], listed=True)[0]) == 3


def test_outputs_with_another_number_of_rows_are_rejected():
    with pytest.raises(NotShareableError, match="output"):
        outputs.split(torch.ones(4, 2), [1, 2], listed=False)
    with pytest.raises(NotShareableError, match="opaque output"):
        outputs.split((object(),), [1, 2], listed=False)


def test_is_close_allows_rounding_only():
    x = torch.randn(3, 4)
    assert outputs.is_close(x, x * (1 + 1e-5))
    assert not outputs.is_close(x, x + 0.1 * x.abs().max())
    assert not outputs.is_close(x, torch.full_like(x, float("nan")))
    assert outputs.is_close(torch.full_like(x, float("nan")), torch.full_like(x, float("nan")))


# ---- batched modules ---------------------------------------------------------------------------------------


class Masked(torch.nn.Module):
    """Adds to each row the mean of its text, as far as the mask goes; or, wrongly, of all of it."""

    def __init__(self, heeds_mask=True):
        super().__init__()
        self.heeds_mask = heeds_mask

    def forward(self, x, text, text_mask, generator=None):
        mask = text_mask if self.heeds_mask else torch.ones_like(text_mask)
        if generator is not None:
            x = x + torch.rand(1, generator=generator)
        return (x + (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),)


def run_together(module, calls):
    """Run calls of a module, each in a task; return results, fallback reasons, and tasks of each forward."""
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    events = []
    with torch.no_grad():
        module(**texts(2)[0])  # shows that it keeps no state
        scheduler = BatchScheduler(observe=events.append)
        tasks = [scheduler.start(lambda call=call: [module(**call)[0] for _ in range(2)]) for call in calls]
        while scheduler.step():
            pass
    stage.remove()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result for task in tasks], {event.fallback for event in events}, [len(e.tasks) for e in events]


def texts(*lengths, **more):
    return [
        {"x": torch.ones(1, 4), "text": torch.full((1, n, 4), 2.0), "text_mask": torch.ones(1, n), **more}
        for n in lengths
    ]


@pytest.mark.parametrize(("heeds_mask", "reasons"), [(True, {""}), (False, {"mismatch", "unequal"})])
def test_padding_is_compared_with_forwards_of_calls_alone(heeds_mask, reasons):
    module, calls = Masked(heeds_mask), texts(2, 6)
    expected = [module(**call)[0] for call in calls]
    results, fallbacks, together = run_together(module, calls)
    for pair, image in zip(results, expected, strict=True):
        assert all(same_values(result, image) for result in pair)
    assert fallbacks == reasons
    assert (max(together) == 2) == heeds_mask


def test_padding_is_compared_even_after_equal_lengths_passed():
    module, calls = Masked(heeds_mask=False), texts(4, 4, 6)
    expected = [module(**call)[0] for call in calls]
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    with torch.no_grad():
        module(**calls[0])
        scheduler = BatchScheduler()
        for chosen in ((0, 1), (0, 2)):
            tasks = [scheduler.start(lambda index=index: module(**calls[index])[0], tag=index) for index in chosen]
            while scheduler.step():
                pass
            for task in tasks:
                assert same_values(task.result, expected[task.tag])
    stage.remove()


def test_no_forward_mixes_adapters():
    module, call = Masked(), texts(3)[0]
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    events = []
    with torch.no_grad():
        module(**call)
        scheduler = BatchScheduler(observe=events.append)
        for adapters in ("a", "b", "a", "b", None):
            scheduler.start(lambda: [module(**call) for _ in range(3)], adapters=adapters)
        while scheduler.step():
            pass
    stage.remove()
    assert all(len({task.adapters for task in event.tasks}) == 1 for event in events)
    assert max(len(event.tasks) for event in events) == 2


def test_calls_with_unnamed_arguments_run_alone():
    class Listing(torch.nn.Module):
        def forward(self, x, *more):
            return (x + sum(more),)

    module, calls = Listing(), [(torch.ones(1, 4), torch.full((1, 4), n)) for n in (2.0, 3.0)]
    stage = BatchedModule("toy", module, "forward", is_denoiser=True)
    events = []
    with torch.no_grad():
        module(*calls[0])
        scheduler = BatchScheduler(observe=events.append)
        tasks = [scheduler.start(lambda call=call: module(*call)[0]) for call in calls]
        while scheduler.step():
            pass
    stage.remove()
    assert [task.result[0, 0].item() for task in tasks] == [3, 4]
    assert "signature" in {event.fallback for event in events}


def test_encoders_with_one_cache_have_separate_entries():
    encoders, cache = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)], BoundedCache(10**6)
    expected = [encoder(torch.ones(1, 4)) for encoder in encoders]
    stages = [BatchedModule("text", encoder, "forward", cache=cache) for encoder in encoders]
    with torch.no_grad():
        scheduler = BatchScheduler()
        tasks = [scheduler.start(lambda encoder=encoder: encoder(torch.ones(1, 4))) for encoder in encoders * 2]
        while scheduler.step():
            pass
        tasks += [scheduler.start(lambda encoder=encoder: encoder(torch.ones(1, 4))) for encoder in encoders]
    for stage in stages:
        stage.remove()
    assert cache.hits == 2
    for task, result in zip(tasks, expected * 3, strict=True):
        assert same_values(task.result, result)


def test_calls_with_unused_generators_share_a_forward():
    class Polite(Masked):
        def forward(self, x, text, text_mask, generator=None):
            return super().forward(x, text, text_mask)

    calls = [dict(call, generator=torch.Generator().manual_seed(seed)) for seed, call in enumerate(texts(2, 2))]
    _, fallbacks, together = run_together(Polite(), calls)
    assert fallbacks == {""}
    assert together == [2, 2]


def test_calls_whose_generators_are_used_run_alone():
    def calls():
        return [dict(call, generator=torch.Generator().manual_seed(seed)) for seed, call in enumerate(texts(2, 2))]

    module = Masked()
    expected = [[module(**call)[0] for _ in range(2)] for call in calls()]
    results, fallbacks, _ = run_together(module, calls())
    for pair, images in zip(results, expected, strict=True):
        assert all(same_values(result, image) for result, image in zip(pair, images, strict=True))
    assert fallbacks == {"random"}


def test_callers_cannot_change_cached_outputs():
    module = torch.nn.Linear(4, 4)
    cache = BoundedCache(10**6)
    stage = BatchedModule("text", module, "forward", cache=cache)
    x = torch.ones(1, 4)
    with torch.no_grad():
        expected = module(x).clone()
        scheduler = BatchScheduler()
        for _ in range(3):
            scheduler.start(lambda: module(x).zero_())
            scheduler.step()
        task = scheduler.start(lambda: module(x))
    stage.remove()
    assert cache.hits == 3
    assert same_values(task.result, expected)


# ---- state -------------------------------------------------------------------------------------------------


class Keeping(torch.nn.Module):
    """Keeps state in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.count = 0
        self.kept = []
        self.register_buffer("total", torch.zeros(1))
        self.helper = type("Helper", (), {})()
        self.cache = {}

    def forward(self, x):
        match self.way:
            case "counter":
                self.count += 1
            case "list":
                self.kept.append(x)
            case "buffer":
                self.total += x.sum()
            case "object":
                self.helper.last = x + 0
            case "by shape":  # fills once, and is the same for all
                self.cache.setdefault(x.shape, x.shape[-1])
        return (x,)


@pytest.mark.parametrize("way", ["counter", "list", "buffer", "object"])
def test_state_is_detected(way):
    inner = Keeping(way)
    module = torch.nn.Sequential(inner)
    watch = StateMonitor(module)
    while not watch.judged:
        with watch.forward():
            inner(torch.ones(1, 2))
    assert not watch.stateless


@pytest.mark.parametrize("way", ["none", "by shape"])
def test_caches_that_depend_on_shapes_are_no_state(way):
    module = Keeping(way)
    watch = StateMonitor(module)
    while not watch.judged:
        with watch.forward():
            module(torch.ones(1, 2))
    assert watch.stateless


def test_step_caches_of_diffusers_are_state():
    module = Keeping("none")
    module.is_cache_enabled = True
    watch = StateMonitor(module)
    assert watch.judged
    assert not watch.stateless
