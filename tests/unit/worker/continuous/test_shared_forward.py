"""What a shared forward proves: only about arguments in which the calls of one forward differed."""

import pytest

torch = pytest.importorskip("torch")

from imagegen_worker.backends import DeviceMemoryError  # noqa: E402
from imagegen_worker.backends.diffusers import shared_forward  # noqa: E402
from imagegen_worker.backends.diffusers.digests import row_digest  # noqa: E402
from imagegen_worker.backends.diffusers.layouts import describe  # noqa: E402
from imagegen_worker.backends.diffusers.shared_forward import ForwardGroup, SharedForwards  # noqa: E402
from imagegen_worker.engines.continuous.calls import NotShareableError  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Model:
    """A function of the arguments by name; counts its forwards, and runs out of memory above `max_rows`."""

    def __init__(self, function):
        self.function = function
        self.rows = []
        self.max_rows = 1000

    def __call__(self, args, arguments):
        rows = len(arguments["x"])
        if rows > self.max_rows:
            raise DeviceMemoryError("out of memory")
        self.rows.append(rows)
        return self.function(**arguments)


def group_of(forwards, calls):
    descriptions = [describe(call) for call in calls]
    kinds = [forwards.kind(None, each, call) for each, call in zip(descriptions, calls, strict=True)]
    assert all(kind is kinds[0] for kind in kinds)
    return ForwardGroup(kinds[0], calls, [each.rows for each in descriptions], [((), call) for call in calls])


def error_of(forwards, model, calls, max_rows=8):
    """Run the calls together; return the largest error."""
    found = forwards.run(group_of(forwards, calls), max_rows)
    pairs = zip(found, calls, strict=True)
    return max(float((output - model.function(**call)).abs().max()) for output, call in pairs)


def paths(arguments):
    return {argument.path[0] for argument in arguments}


def reads_row_0(x, ids):
    return x * torch.cos(ids[:1].float())


def position_call(rows=1):
    return {"x": torch.randn(rows, 16, 8), "ids": torch.rand(1, 16, 8).expand(rows, -1, -1)}


def test_a_forward_that_is_split_for_memory_proves_nothing():
    model = Model(reads_row_0)
    forwards = SharedForwards(model)
    calls = [position_call(), position_call()]
    assert error_of(forwards, model, calls, max_rows=1) < 1e-6
    assert not forwards._evidence.per_row
    assert error_of(forwards, model, calls, max_rows=2) < 1e-6


def test_a_kind_that_was_never_compared_shares_no_part_of_a_split_forward():
    model = Model(lambda x, flag: x + 0.5 * x.flip(0))
    forwards = SharedForwards(model)
    x = torch.randn(1, 4)
    calls = [{"x": x, "flag": True}] * 4  # the calls have equal arguments, so none is unproven
    forwards.run(group_of(forwards, calls), 2)
    assert max(model.rows) == 1


def test_running_out_of_memory_while_comparing_only_postpones_the_decision():
    model = Model(lambda x, time: x + time[:, None].float().cos())
    forwards = SharedForwards(model)
    calls = [
        {"x": torch.randn(1, 4), "time": torch.tensor([3])},
        {"x": torch.randn(1, 4), "time": torch.tensor([5])},
    ]
    compare, short = forwards._compare, [True]

    def compare_without_memory(*arguments, **named):
        if short[0]:
            raise DeviceMemoryError("out of memory")
        return compare(*arguments, **named)

    forwards._compare = compare_without_memory
    for _ in range(3):
        assert error_of(forwards, model, calls) < 1e-6
    assert not forwards._evidence.per_row
    assert not list(forwards._evidence.by_content)
    short[0] = False
    for _ in range(40):
        model.rows.clear()
        assert error_of(forwards, model, calls) < 1e-6
    assert model.rows == [2]


def mixes_if_flagged(x, flag):
    return x + (0.5 * x.flip(0) if flag else 0)


def test_a_call_alone_proves_nothing_about_calls_that_share():
    model = Model(mixes_if_flagged)
    forwards = SharedForwards(model)
    harmless, mixing = ([{"x": torch.randn(1, 4, 8), "flag": flag} for _ in range(2)] for flag in (False, True))
    forwards.run(group_of(forwards, harmless), 2)
    assert paths(forwards._evidence.per_row) == {"x"}
    model.rows.clear()
    forwards.run(group_of(forwards, mixing[:1]), 2)
    assert model.rows == [1]
    with pytest.raises(NotShareableError, match="depend on each other"):
        forwards.run(group_of(forwards, mixing), 2)


def test_a_call_alone_that_is_padded_to_fixed_rows_is_compared_once():
    model = Model(lambda x, flag: x + x.sum(0) if flag else x)
    forwards = SharedForwards(model, fixed_rows=2)
    call = {"x": torch.randn(1, 4, 8), "flag": False}
    for expected in ([2, 1], [2]):
        model.rows.clear()
        assert error_of(forwards, model, [call], max_rows=2) < 1e-6
        assert model.rows == expected
    with pytest.raises(NotShareableError, match="depend on each other"):
        forwards.run(group_of(forwards, [{**call, "flag": True}]), 2)


MIXING = {
    "row 0": lambda ids: ids[:1],
    "the last row": lambda ids: ids[-1:],
    "the mean": lambda ids: ids.mean(0, keepdim=True),
}


def scaled_call(x, scale):
    return {"x": x, "ids": torch.full_like(x, scale)}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("mixing", MIXING)
def test_an_argument_read_row_by_row_is_not_rejected_because_of_another(mixing, rows):
    read = MIXING[mixing]
    model = Model(lambda x, ids: x * read(ids))
    forwards = SharedForwards(model)
    x = 1 + torch.rand(1, 16, 8)
    # The effects of both arguments have one direction, so the one of `ids` looks like the one of `x`.
    calls = [scaled_call(x, 0.3), scaled_call((2 * x).repeat(rows, 1, 1), 0.9)]
    assert error_of(forwards, model, calls) < 1e-5
    assert paths(forwards._evidence.by_content) == {"ids"}
    alike = [scaled_call(x, 0.3), scaled_call(2 * x, 0.3)]
    for _ in range(3):
        model.rows.clear()
        assert error_of(forwards, model, alike) < 1e-5
    assert model.rows == [2]


def averages_without_mask(x, text, text_mask):
    return x + text.mean(1)


def text_call(length):
    """One prompt, repeated to a length: only its padding differs."""
    return {
        "x": torch.ones(1, 8),
        "text": torch.full((1, length, 8), 3.0),
        "text_mask": torch.ones(1, length),
    }


def test_a_little_padding_proves_nothing_about_much_padding():
    model = Model(averages_without_mask)
    forwards = SharedForwards(model)
    little, much = ([text_call(length) for length in lengths] for lengths in ((5999, 6000), (2, 300)))
    for _ in range(20):  # so little that it is within the tolerance of outputs
        model.rows.clear()
        group = group_of(forwards, little)
        forwards._evidence.per_row.update(group.kind.row_arguments)  # they are known to be read row by row
        forwards.run(group, 2)
    assert model.rows == [2]
    with pytest.raises(NotShareableError, match="depend on each other"):
        forwards.run(group_of(forwards, much), 2)


def listed_call(*lengths):
    return {"x": [torch.ones(16, 1, 8, 8)] * len(lengths), "text": [torch.ones(length, 4) for length in lengths]}


@pytest.mark.parametrize(
    ("calls", "padding"),
    [
        ([text_call(5), text_call(5)], None),
        ([text_call(58), text_call(60)], 0),
        ([text_call(30), text_call(60), text_call(59)], 1),
        ([text_call(2), text_call(300)], 7),
        ([text_call(0), text_call(3)], 1),
        ([listed_call(5, 9), listed_call(9, 5)], None),
        ([listed_call(5), listed_call(5, 40)], 3),
    ],
)
def test_padding_is_measured_by_the_longest_and_the_shortest_text(calls, padding):
    assert shared_forward._padding(group_of(SharedForwards(Model(None)), calls)) == padding


def test_digests_of_lists_contain_the_count_of_each_row():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    lists = [[a], [b], [a, b], [b, a], [a, b, b], [a, a, b], [a, b, a]]
    assert len({row_digest(each) for each in lists}) == len(lists)
    assert row_digest([a, a.clone()]) == row_digest([a])
