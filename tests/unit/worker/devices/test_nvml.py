"""The list of GPUs and their readings from NVML, with a stand-in for the driver's library."""

import threading

import pytest

from imagegen_worker.devices.gpu import Gpu, format_gpus
from imagegen_worker.devices.nvml import list_gpus
from imagegen_worker.devices.readings import GpuMonitor, GpuReadings, read_gpu
from tests.unit.worker.devices.standin import MIG, A, B, Card, NVMLError, StandIn, split_card


def test_every_card_is_listed_in_order_and_nvml_is_closed():
    nvml = StandIn(Card(A, "One"), Card(B, "Two"))
    assert list_gpus(nvml) == [
        Gpu(number=0, index=0, name="One", uuid=A),
        Gpu(number=1, index=1, name="Two", uuid=B),
    ]
    assert nvml.open == 0


def test_a_card_with_mig_disabled_is_one_gpu():
    (gpu,) = list_gpus(StandIn(Card(A, parts={})))
    assert (gpu.uuid, gpu.instance) == (A, None)


def test_a_card_in_mig_mode_is_replaced_by_its_instances():
    gpus = list_gpus(StandIn(Card(A), split_card(0, 3), Card(B)))
    assert [gpu.number for gpu in gpus] == [0, 1, 2, 3]
    assert [gpu.uuid for gpu in gpus] == [A, *MIG, B]
    assert [gpu.index for gpu in gpus] == [0, 1, 1, 2]
    assert [gpu.label for gpu in gpus] == ["0", "1-mig0", "1-mig3", "2"]
    assert gpus[1].card_uuid == "GPU-cccc3333-0000"


def test_a_lost_card_is_skipped_and_the_others_keep_their_indexes(caplog):
    gpus = list_gpus(StandIn(Card(A, lost=True), Card(B)))
    assert [(gpu.number, gpu.index, gpu.uuid) for gpu in gpus] == [(0, 1, B)]
    (record,) = caplog.records
    assert record.fields["gpu"] == 0


def test_nvml_raises_without_a_driver():
    with pytest.raises(NVMLError):
        list_gpus(StandIn(driver=False))


def test_gpus_are_formatted_for_error_messages():
    gpus = list_gpus(StandIn(Card(A, "One"), split_card(2)))
    assert format_gpus([]) == "none"
    assert format_gpus(gpus) == (
        f"0 (One, {A}); 1 (NVIDIA Test Card MIG 1g.10gb, {MIG[0]}, GPU 1-mig2 of this host)"
    )
    assert format_gpus(gpus[1:]).startswith("0 (")
    assert format_gpus([Gpu(number=0, index=0, name="One")]) == "0 (One)"


# ---- readings ----------------------------------------------------------------------------------------------


@pytest.fixture
def card():
    return Card(A)


@pytest.fixture
def nvml(card):
    return StandIn(card)


@pytest.fixture
def now():
    return [10.0]


@pytest.fixture
def monitor(nvml, now):
    return GpuMonitor(A, nvml, clock=lambda: now[0])


def test_readings_are_in_base_units(monitor):
    got = monitor.readings()
    assert (got.memory_used, got.memory_total) == (2_000, 80_000)
    assert (got.utilization, got.temperature, got.power) == (0.37, 61, 312.5)
    assert got.clocks == {"sm": 1_980_000_000, "memory": 2_619_000_000}
    assert {name for name, held in got.throttled.items() if held} == {"sw_power_cap", "sw_thermal_slowdown"}


@pytest.mark.parametrize(
    ("missing", "fields"),
    [
        ("memory", ("memory_used", "memory_total")),
        ("utilization", ("utilization",)),
        ("temperature", ("temperature",)),
        ("power", ("power",)),
        ("reasons", ("throttled",)),
    ],
)
def test_an_unsupported_reading_leaves_the_others(card, nvml, monitor, missing, fields):
    setattr(card, missing, None)
    got = monitor.readings()
    for name in GpuReadings.__dataclass_fields__:
        assert bool(getattr(got, name)) == (name not in fields), name


def test_an_unsupported_clock_leaves_the_other(card, monitor):
    del card.clocks[2]
    assert monitor.readings().clocks == {"sm": 1_980_000_000}


def test_an_instance_is_read_by_its_own_uuid():
    nvml = StandIn(split_card(1))
    nvml.nvmlInit()
    nvml.cards[0].parts[1].memory = (5, 10)
    assert read_gpu(nvml, MIG[0]).memory_used == 5


def test_readings_are_cached_for_a_second(card, nvml, monitor, now):
    monitor.readings()
    card.temperature = 80
    now[0] += 0.9
    assert monitor.readings().temperature == 61
    now[0] += 0.2
    assert monitor.readings().temperature == 80
    assert (nvml.reads, nvml.open) == (2, 1)


def test_readings_resume_after_a_lost_card_returns(card, monitor, now):
    card.lost = True
    assert monitor.readings() == GpuReadings()
    card.lost = False
    now[0] += 1.0
    assert monitor.readings().temperature == 61


def test_readings_start_once_the_driver_is_loaded(nvml, monitor, now):
    nvml.driver = False
    assert monitor.readings() == GpuReadings()
    nvml.driver = True
    now[0] += 1.0
    assert monitor.readings().temperature == 61


def test_other_threads_do_not_wait_for_a_hanging_driver(monkeypatch, nvml, monitor):
    monkeypatch.setattr("imagegen_worker.devices.readings.LOCK_TIMEOUT_SECONDS", 0.01)
    inside, proceed = threading.Event(), threading.Event()

    def hang(card):
        inside.set()
        proceed.wait(60)
        return 1

    nvml.nvmlDeviceGetPowerUsage = hang
    stuck = threading.Thread(target=monitor.readings)
    stuck.start()
    assert inside.wait(60)
    assert monitor.readings() == GpuReadings()
    proceed.set()
    stuck.join(60)
