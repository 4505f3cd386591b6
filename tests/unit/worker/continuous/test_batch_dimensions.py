"""Batch dimensions are found by calls with different numbers of rows."""

import pytest
import torch

from imagegen_worker.backends.diffusers.batch_dimensions import BatchDimensions
from imagegen_worker.backends.diffusers.layouts import describe
from imagegen_worker.engines.continuous.calls import NotShareableError


def arguments(rows, layers=2):
    return {
        "hidden_states": torch.arange(rows * 3.0).reshape(rows, 3),
        "layered": torch.arange(layers * rows * 5.0).reshape(layers, rows, 5),
        "tables": (torch.ones(7, 4), torch.zeros(7, 4)),
    }


def dimensions(*row_counts):
    found = BatchDimensions()
    for rows in row_counts:
        found.observe(arguments(rows), rows)
    return found


def test_another_number_of_rows_shows_the_batch_dimension():
    found = dimensions(2, 3)
    assert found.settled
    layout = describe(arguments(2), found).layout
    joined = layout.join([arguments(2), arguments(1)], [2, 1])
    assert joined["layered"].shape == (2, 3, 5)
    assert torch.equal(layout.narrow(joined, 2, 3)["layered"], arguments(1)["layered"])
    assert joined["tables"][0].shape == (7, 4)


@pytest.mark.parametrize("row_counts", [(), (2,), (2, 2)])
def test_an_ambiguous_argument_is_not_joined(row_counts):
    found = dimensions(*row_counts)
    assert not found.settled
    with pytest.raises(NotShareableError, match="unknown batch dimension"):
        describe(arguments(2), found)


def test_one_value_for_all_rows_proves_nothing():
    found = BatchDimensions()
    found.observe({"hidden_states": torch.ones(2, 3), "size": torch.ones(2, 6)}, 2)
    found.observe({"hidden_states": torch.ones(3, 3), "size": torch.ones(1, 6)}, 3)
    assert found.of_tensor(("size",), torch.ones(2, 6), 2) == {0}
