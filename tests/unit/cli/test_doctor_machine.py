"""Checks and probes of a machine."""

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from imagegen_cli.doctor import machine_probes
from imagegen_cli.doctor.findings import Status
from imagegen_cli.doctor.fleet_checks import BrokerFacts
from imagegen_cli.doctor.machine_checks import (
    GIB,
    GpuFacts,
    KeyFacts,
    ModelFacts,
    PortFacts,
    SpaceFacts,
    TorchFacts,
    cache_folder,
    check_disk,
    check_gpu,
    check_key,
    check_memory,
    check_model,
    check_port,
    check_torch,
    ports_of,
)
from imagegen_cli.doctor.network_probes import is_local_host, parse_http_address, probe
from imagegen_cli.main import main
from imagegen_common.listeners import listener, program
from imagegen_protocol.keys import generate_keys

OK, WARNING, PROBLEM = Status
CARD = "GPU 0, Card, 570.1"
SEEN = GpuFacts(1, [CARD], visible=["0"])


def expect(found, status, words):
    assert found.status is status
    assert words in f"{found.message} -> {found.remedy}"
    assert bool(found.remedy) is (status is not OK)


# ---- judging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (KeyFacts("--key", Path("k"), mode=0o600), OK, "--key: k"),
        (KeyFacts("--broker-key", Path("k")), OK, "--broker-key: k"),
        (KeyFacts("--key", Path("k"), mode=0o640), PROBLEM, "mode 640) -> chmod 600 k"),
        (KeyFacts("--key", Path("k"), "can't read it"), PROBLEM, "can't read it -> generate keys"),
    ],
)
def test_keys(facts, status, words):
    expect(check_key(facts), status, words)


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (PortFacts(5555, "--frontend"), OK, "port 5555 (--frontend) is free"),
        (PortFacts(5555, "--frontend", "imagegen-broker", 7), OK, "is used by the broker, process 7"),
        (PortFacts(5555, "--frontend", "", None, True), OK, "another user; a broker answers there"),
        (PortFacts(8080, "--http", "nginx", 7, True), WARNING, "used by nginx, process 7 -> none if"),
        (
            PortFacts(8080, "--http", "nginx", 7),
            PROBLEM,
            "stop that process, or start the broker with another --http",
        ),
        (PortFacts(5556, "--backend", ""), PROBLEM, "another user -> start the broker with another --backend"),
    ],
)
def test_ports(facts, status, words):
    expect(check_port(facts), status, words)


def test_checked_ports():
    assert dict(ports_of(5555, None)) == {5555: "--frontend", 5556: "--backend", 8080: "--http"}
    assert dict(ports_of(7000, None)) == {7000: "--frontend"}
    assert dict(ports_of(7000, 7001)) == {7000: "--frontend", 7001: "--http"}


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (GpuFacts(), OK, "runs on the CPU"),
        (GpuFacts(2), PROBLEM, "2 NVIDIA cards on the bus, but no driver"),
        (GpuFacts(1, error="version mismatch"), PROBLEM, "version mismatch -> load or reinstall"),
        (GpuFacts(1, []), PROBLEM, "the driver lists none"),
        (GpuFacts(1, [CARD]), OK, CARD),
        (SEEN, OK, "imagegen-worker sees 1"),
        (GpuFacts(1, [CARD], visible=[], hidden_by=""), PROBLEM, "(CUDA_VISIBLE_DEVICES='') -> unset"),
        (GpuFacts(1, [CARD], visible=[]), PROBLEM, "nvidia-ml-py"),
    ],
)
def test_gpus(facts, status, words):
    expect(check_gpu(facts), status, words)


@pytest.mark.parametrize(
    ("facts", "gpu", "status", "words"),
    [
        (TorchFacts(error="no libcudart"), SEEN, PROBLEM, "cannot be imported: no libcudart"),
        (TorchFacts("2.9"), GpuFacts(), OK, "torch 2.9, on the CPU"),
        (TorchFacts("2.9"), SEEN, PROBLEM, "built without CUDA"),
        (TorchFacts("2.9", "12.8", 0, "driver too old"), SEEN, PROBLEM, "sees no GPU: driver too old -> upgrade"),
        (TorchFacts("2.9", "12.8"), GpuFacts(1, [CARD], visible=[]), OK, "not tested, since no GPU is visible"),
        (TorchFacts("2.9", "12.8", 2), SEEN, OK, "for CUDA 12.8 sees 2 GPUs"),
    ],
)
def test_torch(facts, gpu, status, words):
    expect(check_torch(facts, gpu), status, words)


@pytest.mark.parametrize(("check", "little"), [(check_disk, 19), (check_memory, 3)])
def test_disk_and_memory(check, little):
    expect(check(SpaceFacts(100 * GIB, 200 * GIB, True)), OK, "100.0 GiB of 200.0 GiB")
    expect(check(SpaceFacts(little * GIB, 200 * GIB, True)), WARNING, f"{little}.0 GiB of 200.0 GiB")
    expect(check(SpaceFacts(GIB // 2, 200 * GIB, True)), PROBLEM, "0.5 GiB")
    expect(check(SpaceFacts(0, 200 * GIB, False)), OK, "0.0 GiB")


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (ModelFacts("/m", 0), OK, "/m: accepted by imagegen-worker"),
        (
            ModelFacts("/m", 2, "error: --model: there is no '/m'"),
            PROBLEM,
            "/m: --model: there is no '/m' -> correct",
        ),
        (ModelFacts("/m", None, "not installed"), PROBLEM, "is unavailable: not installed"),
    ],
)
def test_models(facts, status, words):
    expect(check_model(facts), status, words)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "/home/a/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
    ],
)
def test_the_folder_of_the_hugging_face_cache(environment, folder):
    assert cache_folder(environment, Path("/home/a")) == Path(folder)


# ---- probes ------------------------------------------------------------------------------------------------


def test_key_files_are_read_with_their_permissions(tmp_path):
    public, secret = generate_keys(tmp_path, "alice")
    own, broker = machine_probes.inspect_keys(secret, public)
    assert (own.error, own.mode) == (broker.error, broker.mode or 0o600) == ("", 0o600)
    secret.chmod(0o644)
    assert machine_probes.inspect_keys(secret, public)[0].mode == 0o644


def test_each_invalid_key_file_is_reported(tmp_path):
    public, secret = generate_keys(tmp_path, "alice")
    own, broker = machine_probes.inspect_keys(public, tmp_path / "nowhere.key")
    assert "no secret key" in own.error
    assert "nowhere.key" in broker.error
    assert machine_probes.inspect_keys(None, None) == []
    assert "is required with --key" in machine_probes.inspect_keys(secret, None)[1].error
    assert "is required with --broker-key" in machine_probes.inspect_keys(None, public)[0].error


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_listening_process_is_found(listening):
    name, pid = listener(listening)
    assert pid == os.getpid()
    assert name
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listener(bound.getsockname()[1]) is None


def test_a_listener_of_another_user_has_no_name(tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    line = "0: 0100007F:15B3 00000000:0000 0A 0:0 00:0 0 1000 0 4711"
    connected = line.replace("15B3", "15B4").replace(" 0A ", " 01 ")
    (tmp_path / "net" / "tcp").write_text(f"heads\n{line}\n{connected}\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert listener(0x15B3) == ("", None)
    assert listener(0x15B4) is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/v/bin/python3.12", "/v/bin/imagegen-broker", "--http", ""], "imagegen-broker"),
        (["/v/bin/python", "-m", "http.server"], "python"),
        (["nginx: master process"], "nginx: master process"),
        ([""], "a process without a name"),
    ],
)
def test_the_name_of_a_program(words, name):
    assert program(words) == name


def test_open_and_refused_endpoints_are_distinguished(listening, tmp_path):
    assert probe(BrokerFacts(f"tcp://127.0.0.1:{listening}"), 5.0).connection == "open"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert probe(BrokerFacts(f"tcp://127.0.0.1:{bound.getsockname()[1]}"), 5.0).connection == "refused"
    assert probe(BrokerFacts("tcp://name.invalid:5555"), 5.0).connection == "unknown host"
    assert probe(BrokerFacts(f"ipc://{tmp_path}/nothing"), 5.0).connection == "refused"


def test_local_hosts_are_recognised():
    assert is_local_host("127.0.0.1")
    assert not is_local_host("192.0.2.1")
    assert not is_local_host("name.invalid")


@pytest.mark.parametrize("text", ["127.0.0.1:8080", "http://127.0.0.1:8080", "http://127.0.0.1:8080/stats"])
def test_http_addresses(text):
    assert parse_http_address(text) == "127.0.0.1:8080"


@pytest.mark.parametrize("text", ["8080", "https://a:1", "http://a", "a:x", "a:99999", ""])
def test_invalid_http_addresses(text):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_http_address(text)
    assert CliRunner().invoke(main, ["doctor", "--http", text]).exit_code == 2


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def script(path, text):
    put(path, f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_cards_are_counted_on_the_bus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x1002", "0x030000"),
    ):
        put(tmp_path / name / "vendor", f"{vendor}\n")
        put(tmp_path / name / "class", f"{kind}\n")
    assert machine_probes.inspect_gpus(tmp_path) == GpuFacts(1)


def test_the_driver_and_the_worker_are_queried(tmp_path, monkeypatch):
    smi, worker = tmp_path / "bin" / "nvidia-smi", tmp_path / "bin" / "imagegen-worker"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    script(smi, 'echo "0, Card, 570.1"')
    assert machine_probes.inspect_gpus(tmp_path) == GpuFacts(0, [CARD])
    script(worker, """echo '{"number": 0, "uuid": "GPU-1", "name": "Card", "label": "0"}'""")
    assert machine_probes.inspect_gpus(tmp_path) == GpuFacts(0, [CARD], visible=["0"], hidden_by="1")
    script(smi, 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    assert (
        machine_probes.inspect_gpus(tmp_path).error == "Failed to initialize NVML: Driver/library version mismatch"
    )


def test_torch_is_queried_in_another_process(tmp_path):
    python = tmp_path / "python"
    script(python, """echo noise; echo '["2.9", "12.8", 1, ""]'""")
    assert machine_probes.inspect_torch(str(python)) == TorchFacts("2.9", "12.8", 1)
    script(python, "echo 'Traceback' >&2; echo 'ImportError: libcudart' >&2; exit 1")
    assert machine_probes.inspect_torch(str(python)).error == "ImportError: libcudart"


def test_memory_is_that_of_the_machine():
    facts = machine_probes.inspect_memory(needed=True)
    assert facts.needed
    assert 0 < facts.free < facts.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_disk_of_a_missing_cache_folder_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    room = machine_probes.inspect_disk(needed=True)
    assert room.path == tmp_path / "not" / "yet"
    assert 0 < room.free <= room.total
