"""The GPUs that `CUDA_VISIBLE_DEVICES` makes visible, and those that `--gpu` selects among them."""

import pytest

from imagegen_common.addresses import ConfigError
from imagegen_worker.devices.gpu import Gpu
from imagegen_worker.devices.nvml import list_gpus
from imagegen_worker.devices.selection import GpuMissingError, select_gpus, visible_gpus
from tests.unit.worker.devices.standin import MIG, A, B, Card, StandIn, split_card

C = "GPU-aaaa9999-0000"
CARDS = list_gpus(StandIn(Card(A), Card(B), Card(C)))
MIXED = list_gpus(StandIn(split_card(0, 1), Card(A)))


def visible(text, gpus=CARDS):
    return [gpu.uuid for gpu in visible_gpus(gpus, text).gpus]


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (None, [A, B, C]),
        ("0", [A]),
        ("2,0", [C, A]),
        (" 1 , 2", [B, C]),
        ("+1", [B]),
        ("1gpu", [B]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,2", [A]),
        ("0,3,1", [A]),
        ("0,,1", [A]),
        ("1,x,0", [B]),
        ("0,1,0", []),
        ("0,00", []),
        (A, [A]),
        (f"{B},{A}", [B, A]),
        ("GPU-bbbb", [B]),
        ("GPU-aaaa", []),
        ("GPU-aaaa9", [C]),
        (f"{A},GPU-none,{B}", [A]),
        (f"{A},{A}", []),
        (f"{A},GPU-aaaa1", []),
        (f"0,{B}", [A]),
        (f"{B},0", [B]),
        (f"{B},MIG-cccc", [B]),
        (f"{B}, {A}", [B]),
        ("99999999999999999999", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(text, uuids):
    assert visible(text) == uuids


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (None, [*MIG, A]),
        ("0", [MIG[0]]),
        ("1", [A]),
        ("1,0", [A, MIG[0]]),
        ("2", []),
        (MIG[1], [MIG[1]]),
        (f"{MIG[1]},{MIG[0]}", [MIG[1], MIG[0]]),
        ("MIG-cccc0002", [MIG[1]]),
        ("MIG-cccc", []),
        (f"{MIG[0]},{A}", [MIG[0]]),
        ("GPU-cccc", [MIG[0]]),
        (f"GPU-cccc3333-0000,{A}", [MIG[0], A]),
    ],
)
def test_a_card_in_mig_mode_stands_for_its_first_instance(text, uuids):
    assert visible(text, MIXED) == uuids


def test_an_instance_uuid_of_an_old_driver_contains_card_and_indexes():
    old = Gpu(number=0, index=0, name="n", uuid=f"MIG-{A}/1/0", instance=0, card_uuid=A)
    assert visible(f"MIG-{A}/1/0", [old]) == [old.uuid]
    assert visible(f"MIG-{A}/2/0", [old]) == []


def test_a_full_uuid_that_is_a_prefix_of_another_one_is_unambiguous():
    gpus = [Gpu(number=n, index=n, name="n", uuid=uuid) for n, uuid in enumerate(("GPU-1", "GPU-12"))]
    assert visible("GPU-1", gpus) == ["GPU-1"]


def test_gpus_without_uuids_are_selected_by_number():
    gpus = [Gpu(number=n, index=n, name="n") for n in range(2)]
    assert visible_gpus(gpus, "1").gpus == (gpus[1],)
    assert visible_gpus(gpus, "GPU-1").gpus == ()
    assert gpus[1].cuda_id == "1"
    assert CARDS[1].cuda_id == B


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ""),
        ("0,1", ""),
        ("", "it is empty"),
        ("0,7,1", "'7' is not a GPU, which hides it and all entries after it"),
        ("GPU-aaaa", "'GPU-aaaa' is not a GPU"),
        ("1,1", "'1' is listed twice, which hides every GPU"),
    ],
)
def test_an_invalid_entry_is_described(text, words):
    problem = visible_gpus(CARDS, text).problem
    assert words in problem
    assert bool(words) == bool(problem)


# ---- --gpu -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (None, [C, A]),
        ("0", [C]),
        ("1,0", [A, C]),
        (" 0 , 1 ", [C, A]),
        (A, [A]),
        (f"0,{A}", [C, A]),
        ("GPU-aaaa9", [C]),
    ],
)
def test_gpu_numbers_count_the_visible_gpus(text, uuids):
    assert [gpu.uuid for gpu in select_gpus(visible_gpus(CARDS, "2,0").gpus, text)] == uuids


def test_every_mig_instance_has_its_own_number():
    assert [gpu.uuid for gpu in select_gpus(MIXED, "2,1")] == [A, MIG[1]]


@pytest.mark.parametrize("text", ["3", "0,3", "GPU-none", "MIG-cccc0001-0000", "GPU-aaaa"])
def test_the_error_for_a_missing_gpu_lists_the_existing_ones(text):
    with pytest.raises(GpuMissingError) as caught:
        select_gpus(CARDS, text)
    for uuid in (A, B, C):
        assert uuid in str(caught.value)


def test_a_card_in_mig_mode_cannot_be_selected():
    with pytest.raises(GpuMissingError, match="MIG-cccc0001"):
        select_gpus(MIXED, "GPU-cccc3333-0000")


@pytest.mark.parametrize("text", ["0,0", f"0,{A}", f"{A},GPU-aaaa1"])
def test_a_gpu_that_is_listed_twice_is_an_error(text):
    with pytest.raises(ConfigError, match="listed twice"):
        select_gpus(CARDS, text)


@pytest.mark.parametrize("text", ["", ",", "0,", "-1", "all", "0;1", "0x1", "1.5", "٣", "99999"])
def test_an_entry_that_is_neither_a_number_nor_a_uuid_is_an_error(text):
    with pytest.raises(ConfigError, match="--gpu must be numbers or UUIDs separated by commas, such as 0,2, got"):
        select_gpus(CARDS, text)
