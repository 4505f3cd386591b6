"""The workers that are derived from `--gpu`, `--device`, `CUDA_VISIBLE_DEVICES` and the detected cards."""

import socket
import sys

import pytest

from imagegen_common.addresses import ConfigError
from imagegen_worker.config import WorkerConfig
from imagegen_worker.devices.nvml import list_gpus
from imagegen_worker.devices.selection import GpuMissingError
from imagegen_worker.supervisor.plan import log_fields, plan, worker_commands
from tests.unit.worker.devices.standin import MIG, A, B, Card, StandIn, split_card

HOST = socket.gethostname()
CARDS = (Card(A, "One"), Card(B, "Two"))


def planned(gpu=None, cards=CARDS, environment=None, **fields):
    def detect():
        return list_gpus(StandIn(*cards))

    return plan(WorkerConfig(**fields), gpu, environment or {}, detect)


def simulated(gpu=None, **fields):
    def detect():
        raise AssertionError("GPUs are not detected for workers that use none")

    return plan(WorkerConfig(**{"backend": "simulated", **fields}), gpu, {}, detect)


def names(result):
    return [spec.config.worker_name for spec in result.specs]


def test_by_default_every_gpu_has_a_worker():
    result = planned()
    assert result.supervised
    assert names(result) == [f"{HOST}-gpu0", f"{HOST}-gpu1"]
    assert [(spec.config.gpu, spec.config.gpu_uuid, spec.config.gpu_name) for spec in result.specs] == [
        (0, A, "One"),
        (1, B, "Two"),
    ]
    assert {spec.config.device for spec in result.specs} == {"cuda"}
    assert not result.warnings


def test_a_worker_sees_only_its_own_card_as_number_0():
    for spec, uuid in zip(planned().specs, (A, B), strict=True):
        assert spec.environment == {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        assert spec.gpu == "0"


def test_a_supervised_worker_selects_the_same_card_from_its_environment():
    """A worker process computes its plan again from the options and environment of its spec."""
    for cards in (CARDS, (split_card(0, 2), Card(A))):
        for spec in planned(cards=cards, name="n").specs:
            own = planned(spec.gpu, cards, spec.environment, name=spec.config.name)
            assert not own.supervised
            assert [again.config for again in own.specs] == [spec.config]
            assert own.specs[0].environment == spec.environment


def test_a_single_card_is_supervised_unless_gpu_selects_it():
    one = CARDS[:1]
    assert planned(cards=one).supervised
    assert not planned("0", cards=one).supervised
    assert not planned(A).supervised
    assert names(planned(B)) == [f"{HOST}-gpu1"]
    assert planned("0,1").supervised


def test_gpu_numbers_count_the_gpus_of_cuda_visible_devices():
    result = planned("0", environment={"CUDA_VISIBLE_DEVICES": "1,0"})
    (spec,) = result.specs
    assert (spec.config.gpu, spec.config.gpu_uuid, spec.config.worker_name) == (1, B, f"{HOST}-gpu1")
    assert [s.config.gpu for s in planned(environment={"CUDA_VISIBLE_DEVICES": B}).specs] == [1]


def test_each_mig_instance_has_a_worker():
    result = planned(cards=(split_card(0, 2), Card(A)), http_port=9000)
    assert names(result) == [f"{HOST}-gpu0-mig0", f"{HOST}-gpu0-mig2", f"{HOST}-gpu1"]
    assert [spec.config.gpu for spec in result.specs] == [0, 0, 1]
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in result.specs] == [*MIG, A]
    assert [spec.config.http_port for spec in result.specs] == [9000, 9001, 9002]
    assert names(planned("1", cards=(split_card(0, 2),))) == [f"{HOST}-gpu0-mig2"]


def test_without_a_gpu_there_is_one_worker_on_the_cpu_and_a_warning():
    result = planned(cards=())
    assert not result.supervised
    (spec,) = result.specs
    assert (spec.config.device, spec.config.gpu_uuid, spec.environment) == ("cpu", None, {})
    assert result.warnings == ("no GPU found: the model runs on the CPU",)
    hidden = planned(environment={"CUDA_VISIBLE_DEVICES": ""})
    assert hidden.specs[0].config.device == "cpu"
    assert "CUDA_VISIBLE_DEVICES=: it is empty; GPUs found: 0 (One, " in hidden.warnings[0]


@pytest.mark.parametrize(
    ("gpu", "cards", "environment", "fields", "words"),
    [
        ("2", CARDS, {}, {}, f"GPU 2 not found; GPUs found: 0 (One, {A}); 1 (Two, {B})"),
        ("0,1,2", CARDS, {}, {}, "GPU 2 not found"),
        ("1", CARDS, {"CUDA_VISIBLE_DEVICES": "1"}, {}, f"GPUs found: 0 (Two, {B}, GPU 1 of this host)"),
        ("0", (), {}, {}, "--gpu 0: no GPU found; use --device cpu to run without one"),
        (None, (), {}, {"device": "cuda"}, "--device cuda: no GPU found; use --device cpu to run without one"),
        (None, CARDS, {"CUDA_VISIBLE_DEVICES": "x"}, {"device": "cuda"}, "CUDA_VISIBLE_DEVICES hides 0 (One"),
        ("0", CARDS, {"CUDA_VISIBLE_DEVICES": ""}, {}, "CUDA_VISIBLE_DEVICES hides 0 (One"),
    ],
)
def test_a_missing_gpu_is_an_error(gpu, cards, environment, fields, words):
    with pytest.raises(GpuMissingError) as caught:
        planned(gpu, cards, environment, **fields)
    assert words in str(caught.value)


def test_an_invalid_entry_of_cuda_visible_devices_is_a_warning():
    warning, _ = planned(environment={"CUDA_VISIBLE_DEVICES": "0,9"}).warnings
    assert warning.startswith(
        "CUDA_VISIBLE_DEVICES=0,9: '9' is not a GPU, which hides it and all entries after it"
    )


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
        ({"CUDA_VISIBLE_DEVICES": A}, False),
        ({}, False),
    ],
)
def test_different_cards_cause_a_warning_about_the_order_of_numbers(environment, warned):
    warnings = planned(environment=environment).warnings
    assert any("its numbers are read as nvidia-smi's" in warning for warning in warnings) == warned
    alike = planned(cards=(Card(A), Card(B)), environment=environment)
    assert not alike.warnings


# ---- without GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"backend": "diffusers", "device": "cpu"}, {"device": "cuda"}])
def test_workers_without_a_gpu_are_named_by_number(fields):
    alone = simulated(**fields)
    assert (names(alone), alone.supervised) == ([f"{HOST}-gpu0"], False)
    assert (names(simulated("3", **fields)), simulated("3", **fields).supervised) == ([f"{HOST}-gpu3"], False)
    several = simulated("1,3", **fields)
    assert (names(several), several.supervised) == ([f"{HOST}-gpu1", f"{HOST}-gpu3"], True)
    assert [(spec.gpu, spec.environment) for spec in several.specs] == [("1", {}), ("3", {})]


def test_names_and_ports_of_several_workers_are_derived_from_their_numbers():
    several = simulated("0,2", name="sim", http_port=9101)
    assert names(several) == ["sim-0", "sim-2"]
    assert [spec.config.http_port for spec in several.specs] == [9101, 9103]
    assert [spec.config.http_port for spec in simulated("0,2", http_port=0).specs] == [0, 0]
    alone = simulated("2", name="sim", http_port=9101).specs[0].config
    assert (alone.worker_name, alone.http_port) == ("sim", 9101)


@pytest.mark.parametrize(
    ("gpu", "fields", "words"),
    [
        (A, {}, "expected numbers such as 0,1 for workers that use no GPU, got 'GPU-"),
        ("1,1", {}, "--gpu 1,1: 1 is listed twice"),
        ("0-3", {}, "--gpu must be numbers or UUIDs separated by commas, such as 0,2, got '0-3'"),
        ("1024", {}, "--gpu must be from 0 to 1023, got 1024"),
        ("0,1", {"http_port": 65535}, "--http-port 65535: the port of GPU 1 would be 65536"),
        ("0,1", {"name": "n" * 127}, "--name: expected a name of 1 to 128 UTF-8 characters"),
    ],
)
def test_invalid_selections_for_workers_without_a_gpu(gpu, fields, words):
    with pytest.raises(ConfigError) as caught:
        simulated(gpu, **fields)
    assert words in str(caught.value)


# ---- processes ---------------------------------------------------------------------------------------------


def test_a_child_process_gets_the_same_options_followed_by_its_own():
    given = ["--broker", "tcp://a:1", "--gpu", "0,1", "--http-port", "9101", "--vae-tiling"]
    for number, command in enumerate(worker_commands(planned("0,1", http_port=9101), given)):
        head = [sys.executable, "-P", "-m", "imagegen_worker"]
        own = ["--gpu", "0", "--name", f"{HOST}-gpu{number}", "--http-port", str(9101 + number)]
        assert command.command == [*head, *given, *own]
        assert command.environment == {
            "CUDA_VISIBLE_DEVICES": (A, B)[number],
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "IMAGEGEN_SUPERVISED": "1",
        }
        name = ("One", "Two")[number]
        assert command.log_fields == {
            "worker": f"{HOST}-gpu{number}", "gpu": number, "gpu_uuid": (A, B)[number], "gpu_name": name,
        }  # fmt: skip


def test_the_log_fields_of_a_worker_without_a_gpu_have_no_uuid():
    assert log_fields(simulated("1").specs[0].config) == {"worker": f"{HOST}-gpu1", "gpu": 1}
