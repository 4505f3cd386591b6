"""The compose files: taken by compose itself, which needs no engine, and by the commands that they start."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import programs
from tests.e2e.conftest import command
from tests.promtool import needs_promtool, promtool
from tests.unit.deploy.commands import (
    BROKER_PORTS,
    DEPLOY,
    GATEWAY_PORT,
    ROOT,
    WORKER_HTTP_PORT,
    default,
    understood,
    variables,
)

COMPOSE = DEPLOY / "compose"
FILES = ("compose.yaml", "compose.per-gpu.yaml")
EXAMPLE = (COMPOSE / "env.example").read_text()
KEYS = re.findall(r"^#(IMAGEGEN_\w*KEY|IMAGEGEN_\w*AUTHORIZED\w*)=(.*)$", EXAMPLE, re.MULTILINE)


def _program():
    """Compose 2.20 or newer, as a command or as docker's plugin; None if there is none."""
    for words in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run([*words, "version", "--short"], capture_output=True, text=True, timeout=60)
        version = re.match(r"v?(\d+)\.(\d+)", done.stdout)
        if done.returncode == 0 and version and tuple(map(int, version.groups())) >= (2, 20):
            return words
    return None


PROGRAM = _program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=programs.reason("docker-compose"))


def run(file, *words, **environment):
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*PROGRAM, "-f", COMPOSE / file, *words],
        capture_output=True,
        text=True,
        timeout=100,
        env={**clean, **environment},
    )


def services(file, **environment):
    """What compose makes of the file: services by name, variables that are not set left out."""
    done = run(file, "config", "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["services"]
    for service in made.values():
        given = service.get("environment") or {}
        service["environment"] = {name: value for name, value in given.items() if value is not None}
    return made


def workers(made):
    return {name: service for name, service in made.items() if name.startswith("worker")}


@pytest.fixture(params=FILES)
def file(request):
    return request.param


def test_compose_takes_it_without_a_word(file):
    done = run(file, "config", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_roles_are_there(file):
    made = services(file)
    assert {"broker", "gateway", "prometheus", "grafana"} < set(made)
    assert len(workers(made)) == (1 if file == "compose.yaml" else 4)


def test_the_commands_know_every_variable_and_word(file, monkeypatch):
    for name, service in services(file, **dict(KEYS)).items():
        role = "worker" if name.startswith("worker") else name
        if role in ("broker", "gateway", "worker"):
            assert service["environment"].keys() <= variables(role)
            understood(role, service.get("command") or (), service["environment"], monkeypatch)


def test_workers_dial_where_the_broker_listens(file, monkeypatch):
    made = services(file)
    broker = understood("broker", (), made["broker"]["environment"], monkeypatch)
    for name, port in BROKER_PORTS.items():
        assert broker[name].endswith(f"0.0.0.0:{port}")
    for service in workers(made).values():
        worker = understood("worker", service["command"] or (), service["environment"], monkeypatch)
        assert worker["broker"] == (f"tcp://broker:{BROKER_PORTS['backend']}",)


def test_the_gateway_dials_the_broker_and_asks_for_keys(file, monkeypatch):
    service = services(file)["gateway"]
    gateway = understood("gateway", service["command"], service["environment"], monkeypatch)
    assert gateway["broker"] == (f"tcp://broker:{BROKER_PORTS['frontend']}",)
    assert (gateway["http"], gateway["auth"]) == (f"0.0.0.0:{GATEWAY_PORT}", "keys")
    assert gateway["public_url"] is None


def test_the_gateways_state_outlives_the_container_and_is_all_that_it_writes(file, monkeypatch):
    service = services(file)["gateway"]
    gateway = understood("gateway", service["command"], service["environment"], monkeypatch)
    (state,) = [mount for mount in service["volumes"] if mount["type"] == "volume"]
    assert state["target"] == gateway["state_folder"] == "/state"
    assert (service["read_only"], service["tmpfs"]) == (True, ["/tmp"])
    assert int(service["stop_grace_period"].removesuffix("s")) >= default("gateway", "drain_timeout") + 15


def test_a_shell_that_dials_another_fleet_does_not_lead_the_gateway_astray(file):
    shell = {"IMAGEGEN_FRONTEND": "tcp://elsewhere:5555", "IMAGEGEN_GATEWAY_PUBLIC_URL": "https://images.test"}
    environment = services(file, **shell)["gateway"]["environment"]
    assert environment["IMAGEGEN_FRONTEND"] == "tcp://broker:5555"
    assert environment["IMAGEGEN_GATEWAY_PUBLIC_URL"] == "https://images.test"


def test_the_names_of_the_old_guide_work(file, monkeypatch):
    old = {
        "ENABLE_BATCHING": "false",
        "MAX_BATCH_SIZE": "3",
        "MAX_BATCH_WAIT_TIME": "0.5",
        "GPU_LOAD_BALANCE_STRATEGY": "queue-depth",
        "GPU_IDS": "0,2",
    }
    made = services(file, **old)
    broker = understood("broker", (), made["broker"]["environment"], monkeypatch)
    assert broker["strategy"] == "queue-depth"
    for service in workers(made).values():
        worker = understood("worker", service["command"] or (), service["environment"], monkeypatch)
        assert (worker["batching"], worker["max_batch_size"], worker["max_batch_wait_time"]) == ("off", 3, 0.5)
        assert worker["gpu"] == ("0,2" if file == "compose.yaml" else "0")


def test_unset_names_leave_the_defaults(file, monkeypatch):
    made = services(file)
    assert understood("broker", (), made["broker"]["environment"], monkeypatch)["strategy"] == "least-wait"
    for service in workers(made).values():
        worker = understood("worker", service["command"] or (), service["environment"], monkeypatch)
        assert (worker["batching"], worker["max_batch_size"]) == ("auto", 8)


def test_each_worker_has_its_own_gpu():
    made = workers(services("compose.per-gpu.yaml"))
    devices = [gpu["deploy"]["resources"]["reservations"]["devices"] for gpu in made.values()]
    assert sorted(device["device_ids"][0] for (device,) in devices) == ["0", "1", "2", "3"]
    assert len({gpu["hostname"] for gpu in made.values()}) == 4


def test_one_container_supervises_every_gpu():
    (supervisor,) = workers(services("compose.yaml")).values()
    (device,) = supervisor["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])


def test_the_memory_of_each_daemon_is_limited(file):
    limits = {name: int(service.get("mem_limit", 0)) for name, service in services(file).items()}
    assert limits["broker"] > default("broker", "max_memory")
    assert limits["gateway"] >= 1024**3
    workers_limit = 128 * 1024**3 if file == "compose.yaml" else 32 * 1024**3
    assert {limit for name, limit in limits.items() if name.startswith("worker")} == {workers_limit}
    small = services(file, WORKER_MEMORY="1g")
    assert {int(service["mem_limit"]) for service in workers(small).values()} == {1024**3}


def test_keys_reach_broker_workers_and_gateway(file, monkeypatch):
    assert len(KEYS) == 7
    made = services(file, **dict(KEYS))
    broker = understood("broker", (), made["broker"]["environment"], monkeypatch)
    assert str(broker["key"]) == "/keys/broker.key_secret"
    assert str(broker["authorized_workers"]) == "/keys/workers"
    for service in workers(made).values():
        worker = understood("worker", service["command"] or (), service["environment"], monkeypatch)
        assert [str(worker[name]) for name in ("key", "broker_key")] == [
            "/keys/workers.key_secret",
            "/keys/broker.key",
        ]
    gateway = understood("gateway", (), made["gateway"]["environment"], monkeypatch)
    assert str(gateway["key"]) == "/keys/gateway.key_secret"
    assert str(gateway["broker_key"]) == "/keys/broker.key"


def test_the_examples_commands_make_the_keys_that_its_settings_name(tmp_path):
    made = re.findall(r"^# {5}(.*)$", EXAMPLE, re.MULTILINE)
    for line in made:
        for words in (part.split() for part in line.split(";")):
            if words[0] == "imagegen":
                command(*words, cwd=tmp_path)
            else:
                subprocess.run(["/bin/sh", "-c", " ".join(words)], cwd=tmp_path, check=True)
    for name, path in KEYS:
        role = {"BROKER": "broker", "WORKER": "workers", "GATEWAY": "gateway"}[name.split("_")[1]]
        assert (tmp_path / "keys" / role / path.removeprefix("/keys/")).exists(), name
    assert {path.name for path in (tmp_path / "keys/broker/clients").iterdir()} == {"alice.key", "gateway.key"}


def test_ports_beyond_this_host_need_the_operators_word(file):
    for service in services(file).values():
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}
    ports = services(file)["broker"]["ports"]
    assert {port["target"] for port in ports} == {BROKER_PORTS["frontend"], BROKER_PORTS["http"]}


def test_what_is_mounted_is_there(file):
    made_by_the_operator = {
        COMPOSE / "models",
        *(COMPOSE / "keys" / role for role in ("broker", "workers", "gateway")),
    }
    mounts = [mount for service in services(file).values() for mount in service["volumes"]]
    sources = {Path(mount["source"]) for mount in mounts if mount["type"] == "bind"}
    assert [path for path in sources - made_by_the_operator if not path.exists()] == []
    assert made_by_the_operator <= sources


def test_images_are_built_from_recipes_that_are_there(file):
    for service in services(file).values():
        if "build" in service:
            assert Path(service["build"]["context"]) == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()


# ---- Prometheus and Grafana ----


def read(path):
    return yaml.safe_load(path.read_text())


def test_prometheus_is_as_elsewhere_but_for_addresses():
    here, there = read(COMPOSE / "prometheus.yml"), read(ROOT / "configs/prometheus/prometheus.yml")
    made = services("compose.yaml")["broker"]
    assert here["scrape_configs"][0].pop("static_configs") == [{"targets": [f"broker:{BROKER_PORTS['http']}"]}]
    assert there["scrape_configs"][0].pop("static_configs")
    (files,) = here["scrape_configs"][1]["file_sd_configs"]
    (targets,) = [mount for mount in made["volumes"] if mount["source"] == "targets"]
    written = made["environment"]["IMAGEGEN_BROKER_PROMETHEUS_TARGETS"]
    assert written.removeprefix(targets["target"]) == files["files"][0].removeprefix("/targets")
    assert here["scrape_configs"].pop() == commented_out_job(ROOT / "configs/prometheus/prometheus.yml")
    files["files"] = there["scrape_configs"][1]["file_sd_configs"][0]["files"]
    assert here == there


def commented_out_job(path):
    """The gateway's job, which a fleet without one leaves out; its address is the composed one's."""
    (text,) = re.findall(r"^  # (- job_name: imagegen-gateway\n(?:  #   .*\n)+)", path.read_text(), re.MULTILINE)
    (job,) = yaml.safe_load(text.replace("\n  # ", "\n"))
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{GATEWAY_PORT}"]}]
    return {**job, "static_configs": [{"targets": [f"gateway:{GATEWAY_PORT}"]}]}


@needs_promtool
def test_prometheus_takes_it(tmp_path):
    shutil.copy(COMPOSE / "prometheus.yml", tmp_path)
    shutil.copytree(ROOT / "configs/prometheus/rules", tmp_path / "rules")
    assert promtool("check", "config", tmp_path / "prometheus.yml")[0] == 0


def test_grafana_is_as_elsewhere_but_for_the_address():
    here = read(COMPOSE / "grafana-datasource.yml")
    there = read(ROOT / "configs/grafana/provisioning/datasources/prometheus.yml")
    assert here["datasources"][0].pop("url") == "http://prometheus:9090"
    there["datasources"][0].pop("url")
    assert here == there


def test_dashboards_lie_where_the_provisioning_looks():
    made = services("compose.yaml")["grafana"]
    provider = read(ROOT / "configs/grafana/provisioning/dashboards/imagegen.yml")["providers"][0]
    targets = {mount["target"]: mount["source"] for mount in made["volumes"]}
    assert targets[provider["options"]["path"]] == str(ROOT / "configs/grafana/dashboards")


def test_workers_show_their_metrics_to_prometheus(file, monkeypatch):
    recipe = (DEPLOY / "docker/Dockerfile.worker").read_text()
    assert f"IMAGEGEN_WORKER_HTTP_PORT={WORKER_HTTP_PORT}" in recipe
    for name, service in workers(services(file)).items():
        worker = understood("worker", service["command"] or (), service["environment"], monkeypatch)
        assert (worker["http_host"], service["hostname"]) == ("0.0.0.0", name)
