"""The pretended card behaves as a GPU does."""

import gc

import pytest
import torch


def test_tensors_of_two_devices_do_not_mix(card):
    on_card, on_host = torch.ones(2, device="cuda"), torch.ones(2)
    with pytest.raises(RuntimeError, match="same device"):
        on_card + on_host
    assert (on_card + torch.tensor(1.0)).device == torch.device("cuda:0")
    assert torch.equal((on_card + on_host.to("cuda")).cpu(), torch.full((2,), 2.0))


def test_modules_move_to_the_card(card):
    module = torch.nn.Linear(2, 2).to("cuda")
    assert module.weight.device.type == "cuda"
    assert module(torch.ones(1, 2, device="cuda")).device.type == "cuda"
    with pytest.raises(RuntimeError, match="same device"):
        module(torch.ones(1, 2))


def test_memory_is_counted_and_limited(card):
    first = torch.zeros(256, device="cuda")
    view = first[:10]
    assert card.memory.used == 1024
    card.memory.limit = 2048
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(512, device="cuda")
    del first
    assert card.memory.used == 1024
    del view
    gc.collect()
    assert (card.memory.used, card.memory.peak) == (0, 1024)


def test_synchronisations_are_counted_by_line(card):
    tensor = torch.ones(1, device="cuda")
    for _ in range(3):
        assert tensor.item() == 1
    (line,) = card.synchronisations
    assert "item @" in line
    assert "test_card.py" in line
    assert card.synchronisations[line] == 3


def test_a_copy_to_the_host_without_waiting_has_wrong_values_until_the_event(card):
    copied = torch.full((4,), 7, dtype=torch.uint8, device="cuda").to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert (copied != 7).all()
    event.synchronize()
    assert (copied == 7).all()


def test_the_host_waits_for_copies_to_the_card_except_from_pinned_memory(card):
    host = torch.ones(4)
    host.to("cuda")
    torch.tensor([1.0], device="cuda")
    torch.zeros(4, device="cuda").copy_(host)
    host.to("cuda", non_blocking=True)
    assert sum(card.synchronisations.values()) == 4
    pinned = host.pin_memory()
    copied = pinned.to("cuda", non_blocking=True)
    copied += 1
    assert sum(card.synchronisations.values()) == 4
    pinned += 1
    with pytest.raises(AssertionError, match="pinned memory has changed"):
        torch.cuda.synchronize()


def test_the_limit_of_the_allocator_and_warnings_of_synchronisations(card):
    torch.cuda.set_per_process_memory_fraction(1024 / torch.cuda.get_device_properties(0).total_memory)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(512, device="cuda")
    tensor = torch.zeros(2, device="cuda")
    torch.cuda.set_sync_debug_mode("warn")
    with pytest.warns(UserWarning, match="called a synchronizing CUDA operation"):
        tensor.cpu()
    torch.cuda.set_sync_debug_mode("default")
    tensor.cpu()
