"""The manifests: built by kustomize, checked against Kubernetes' schemas, and true to the commands."""

import json
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from imagegen_protocol.keys import read_curve_keys, read_key_pair
from imagegen_worker.supervisor.core import DRAIN_SIGNAL
from tests.e2e.conftest import command
from tests.programs import NPM_FOLDER, NPM_PACKAGES, needs, require
from tests.unit.deploy.commands import (
    BROKER_PORTS,
    DEPLOY,
    GATEWAY_PORT,
    ROOT,
    WORKER_HTTP_PORT,
    default,
    understood,
)

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
CUSTOM = ("ScaledObject", "ServiceMonitor", "PodMonitor")
NAME = "app.kubernetes.io/name"

pytestmark = needs("kubectl")


def build(folder):
    """What `kubectl kustomize` makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


BUILT = {}


@pytest.fixture(params=OVERLAYS)
def objects(request):
    if request.param not in BUILT:
        BUILT[request.param] = build(FOLDER / "overlays" / request.param)
    return BUILT[request.param]


def find(objects, kind, name):
    (found,) = [thing for thing in objects if (thing["kind"], thing["metadata"]["name"]) == (kind, name)]
    return found


def pod(objects, role):
    return find(objects, "Deployment", f"imagegen-{role}")["spec"]["template"]["spec"]


def container(objects, role):
    (only,) = pod(objects, role)["containers"]
    return only


def params(objects, role, monkeypatch):
    """What the role's command makes of its words and variables."""
    made = container(objects, role)
    words = [word.replace("$(POD_NAME)", "some-pod") for word in made["args"]]
    given = {one["name"]: one["value"] for one in made.get("env", []) if "value" in one}
    return understood(role, words, given, monkeypatch)


def ports(objects, role):
    return {port["name"]: port["containerPort"] for port in container(objects, role)["ports"]}


def test_there_are_the_overlays_that_the_documentation_tells_of():
    assert OVERLAYS == ["autoscale", "multi-node", "single-node"]


def test_kubernetes_has_such_objects(objects):
    for thing in objects:
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)


def check_custom(objects):
    """What the types and schemas of the operators find wrong; a line each."""
    require("node", NPM_PACKAGES)
    custom = [thing for thing in objects if thing["kind"] in CUSTOM]
    done = subprocess.run(
        ["node", NPM_FOLDER / "check.mjs"], input=json.dumps(custom), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_operators_have_such_objects(objects):
    assert check_custom(objects) == []


SLIPS = {
    "cooldownPeriod": "cooldownTime",
    "currentReplicas": "sameReplicas",
    "podMetricsEndpoints": "podMetricEndpoints",
    '"interval": "10s"': '"interval": "ten"',
}


def test_slips_would_be_found():
    wrong = []
    for thing in build(FOLDER / "overlays/autoscale"):
        text = json.dumps(thing)
        wrong += [json.loads(text.replace(right, slip)) for right, slip in SLIPS.items() if right in text]
    found = "\n".join(check_custom(wrong))
    for said in ("cooldownTime", "fallback/behavior", "podMetricEndpoints", "podMetricsEndpoints", "0/interval"):
        assert said in found


def test_everything_is_in_the_namespace(objects):
    for thing in objects:
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == "imagegen"


def test_ports_are_the_commands_own(objects, monkeypatch):
    assert ports(objects, "broker") == BROKER_PORTS
    broker = params(objects, "broker", monkeypatch)
    for name, port in BROKER_PORTS.items():
        assert broker[name].endswith(f"0.0.0.0:{port}")
    worker = params(objects, "worker", monkeypatch)
    assert ports(objects, "worker") == {"metrics": worker["http_port"]} == {"metrics": WORKER_HTTP_PORT}
    assert worker["http_host"] == "0.0.0.0"
    assert ports(objects, "gateway") == {"http": GATEWAY_PORT}
    assert params(objects, "gateway", monkeypatch)["http"] == f"0.0.0.0:{GATEWAY_PORT}"


def test_workers_dial_the_brokers_service(objects, monkeypatch):
    service = find(objects, "Service", "imagegen-broker")
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == BROKER_PORTS
    assert params(objects, "worker", monkeypatch)["broker"] == (
        f"tcp://imagegen-broker:{BROKER_PORTS['backend']}",
    )


def test_the_gateway_is_a_client_that_asks_for_keys_and_keeps_its_state(objects, monkeypatch):
    gateway = params(objects, "gateway", monkeypatch)
    assert gateway["broker"] == (f"tcp://imagegen-broker:{BROKER_PORTS['frontend']}",)
    assert gateway["auth"] == "keys"
    (mount,) = [one for one in container(objects, "gateway")["volumeMounts"] if one["name"] == "state"]
    assert mount["mountPath"] == gateway["state_folder"]
    deployment = find(objects, "Deployment", "imagegen-gateway")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert pod(objects, "gateway")["terminationGracePeriodSeconds"] >= gateway["drain_timeout"] + 15


def test_the_ingress_leads_to_the_gateway_which_knows_its_name(objects, monkeypatch):
    spec = find(objects, "Ingress", "imagegen-gateway")["spec"]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "imagegen-gateway", "port": {"name": "http"}}
    assert spec["tls"][0]["hosts"] == [rule["host"]]
    assert params(objects, "gateway", monkeypatch)["public_url"] == f"https://{rule['host']}"


def allowed(objects, role, port):
    """The roles whose pods a policy lets in at a port; None stands for everybody."""
    rules = find(objects, "NetworkPolicy", f"imagegen-{role}")["spec"]["ingress"]
    peers = [one for rule in rules if {"port": port} in rule["ports"] for one in rule.get("from", [None])]
    return {one and one["podSelector"]["matchLabels"].get(NAME) for one in peers}


def test_what_a_pod_may_dial_lets_it_in(objects):
    for role, others in {
        "worker": {"broker": "backend"},
        "gateway": {"broker": "frontend", "worker": "metrics"},
    }.items():
        rules = find(objects, "NetworkPolicy", f"imagegen-{role}")["spec"]["egress"]
        for other, name in others.items():
            port = ports(objects, other)[name]
            to = {"podSelector": {"matchLabels": {NAME: f"imagegen-{other}"}}}
            assert {"to": [to], "ports": [{"port": port}]} in rules
            assert f"imagegen-{role}" in allowed(objects, other, port)
    assert allowed(objects, "gateway", GATEWAY_PORT) == {None}


def test_services_policies_and_monitors_name_what_is_there(objects):
    labels = {
        role: find(objects, "Deployment", f"imagegen-{role}")["spec"]["template"]["metadata"]["labels"]
        for role in ("broker", "gateway", "worker")
    }
    for thing in objects:
        name = thing["metadata"]["name"].removeprefix("imagegen-")
        role = name if name in labels else "broker"
        spec = thing.get("spec", {})
        if thing["kind"] == "Service":
            assert spec["selector"].items() <= labels[role].items()
            assert {port["targetPort"] for port in spec["ports"]} <= ports(objects, role).keys()
        if thing["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels[role].items()
            into = {port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]}
            assert into <= set(ports(objects, role).values())
        if thing["kind"] in ("ServiceMonitor", "PodMonitor"):
            endpoints = spec.get("endpoints") or spec["podMetricsEndpoints"]
            assert {endpoint["port"] for endpoint in endpoints} <= ports(objects, role).keys()
            assert {endpoint["path"] for endpoint in endpoints} == {"/metrics"}
            assert labels[role][spec["jobLabel"]] == f"imagegen-{role}", "the job that the alerts name"
        if thing["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert spec["selector"]["matchLabels"].items() <= labels[role].items()


def test_probes_ask_for_what_the_daemons_show(objects):
    sources = {
        "broker": "broker/imagegen_broker/http.py",
        "gateway": "gateway/imagegen_gateway/routes/operations.py",
        "worker": "gpu_worker/imagegen_worker/telemetry/http.py",
    }
    for role, source in sources.items():
        probes = {key: value for key, value in container(objects, role).items() if key.endswith("Probe")}
        assert {"readinessProbe", "livenessProbe"} <= probes.keys()
        for probe in probes.values():
            assert f'"{probe["httpGet"]["path"]}"' in (ROOT / source).read_text()
            assert probe["httpGet"]["port"] in ports(objects, role)
    assert container(objects, "worker")["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # A broker is ready by /readyz once it has a worker, which reaches it once it is ready; and a fleet that has
    # scaled to none is asked through a gateway that is ready without one.
    for role in ("broker", "gateway"):
        assert container(objects, role)["readinessProbe"]["httpGet"]["path"] == "/healthz"


def parse_quantity(text):
    """Return the bytes of a quantity such as `8Gi`."""
    return int(text[:-2]) * {"Mi": 1024**2, "Gi": 1024**3}[text[-2:]]


def test_the_memory_of_each_container_is_limited(objects):
    for role in ("broker", "gateway", "worker"):
        resources = container(objects, role)["resources"]
        requested, limit = (parse_quantity(resources[kind]["memory"]) for kind in ("requests", "limits"))
        assert requested < limit


def test_a_worker_has_one_gpu_and_the_time_to_drain(objects, monkeypatch):
    assert container(objects, "worker")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert params(objects, "worker", monkeypatch)["gpu"] == "0"
    step, drain = default("worker", "step_timeout"), default("worker", "drain_timeout")
    assert pod(objects, "worker")["terminationGracePeriodSeconds"] >= step + drain
    hook = container(objects, "worker")["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["sh", "-c", f"kill -{DRAIN_SIGNAL.name.removeprefix('SIG')} 1"]


def test_nothing_is_root_or_writes_where_it_should_not(objects):
    for role in ("broker", "gateway", "worker"):
        assert pod(objects, role)["securityContext"]["runAsUser"] == 10001
        assert pod(objects, role)["automountServiceAccountToken"] is False
        context = container(objects, role)["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_volumes_are_there_for_every_mount(objects):
    claims = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "PersistentVolumeClaim"}
    for role in ("broker", "gateway", "worker"):
        volumes = {volume["name"]: volume for volume in pod(objects, role)["volumes"]}
        assert {mount["name"] for mount in container(objects, role)["volumeMounts"]} == volumes.keys()
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {"claimName": "x"})["claimName"] in {*claims, "x"}


def test_the_fleet_scales_by_its_own_metric():
    objects = build(FOLDER / "overlays/autoscale")
    assert "replicas" not in find(objects, "Deployment", "imagegen-worker")["spec"]
    spec = find(objects, "ScaledObject", "imagegen-worker")["spec"]
    assert spec["scaleTargetRef"]["name"] == "imagegen-worker"
    (trigger,) = spec["triggers"]
    (metric,) = re.findall(r"imagegen_\w+", trigger["metadata"]["query"])
    name = metric.removeprefix("imagegen_broker_")
    assert f'gauge("{name}"' in (ROOT / "broker/imagegen_broker/metrics.py").read_text()
    assert float(trigger["metadata"]["threshold"]) > 0


# ---- keys ----


def words_of_the_comment():
    """The commands that the folder of keys tells to run in it."""
    text = (FOLDER / "keys/kustomization.yaml").read_text()
    return [line.split() for line in re.findall(r"^# {5}(imagegen .*)$", text, re.M)]


def test_keys_come_as_the_pods_expect_them(tmp_path, monkeypatch):
    shutil.copy(FOLDER / "keys/kustomization.yaml", tmp_path)
    made = words_of_the_comment()
    assert len(made) == 4
    for words in made:
        command(*words, cwd=tmp_path)
    keys = build(tmp_path)
    for thing in keys:
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    there = {(thing["kind"], thing["metadata"]["name"]): set(thing["data"]) for thing in keys}
    objects = build(FOLDER / "overlays/single-node")
    for role in ("broker", "gateway", "worker"):
        mounts = {mount["name"]: mount["mountPath"] for mount in container(objects, role)["volumeMounts"]}
        files = set()
        for volume in pod(objects, role)["volumes"]:
            if "secret" in volume:
                names = there["Secret", volume["secret"]["secretName"]]
            elif "configMap" in volume:
                names = there["ConfigMap", volume["configMap"]["name"]]
            else:
                continue
            files |= {f"{mounts[volume['name']]}/{name}" for name in names}
        used = params(objects, role, monkeypatch)
        for option in ("key", "broker_key"):
            assert str(used.get(option, "/keys/own/broker.key_secret")) in files
        for folder in ("authorized_clients", "authorized_workers"):
            assert folder not in used or any(name.startswith(f"{used[folder]}/") for name in files)
    assert read_key_pair(tmp_path / "broker.key_secret")
    for name in ("workers", "gateway"):
        assert read_curve_keys(tmp_path / f"{name}.key_secret", tmp_path / "broker.key")
