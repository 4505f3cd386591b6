"""The commands of the Kubernetes pods, with volumes projected as the kubelet does: a fleet with keys."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from imagegen_client import Client
from tests.e2e.conftest import BROKER, SIMULATED, command, start_simulated
from tests.e2e.gateway.conftest import Gateway
from tests.programs import needs
from tests.unit.deploy.test_kubernetes import FOLDER, build, container, pod, words_of_the_comment

pytestmark = needs("kubectl")


def project(files, target):
    """Create the files of a secret or config map as the kubelet does: links into a hidden folder."""
    (target / "..2026").mkdir(parents=True)
    (target / "..data").symlink_to("..2026")
    for name, path in files.items():
        shutil.copy(path, target / "..2026" / name)
        (target / name).symlink_to(f"..data/{name}")


@pytest.fixture
def secrets(tmp_path):
    """Keys generated as the comment in the folder says: the files of each object that kustomize generates."""
    shutil.copy(FOLDER / "keys/kustomization.yaml", tmp_path)
    for words in words_of_the_comment():
        command(*words, cwd=tmp_path)
    sources = {path.name: path for path in tmp_path.rglob("*.key*")}
    made = {thing["metadata"]["name"]: thing["data"] for thing in build(tmp_path)}
    return {name: {file: sources[file] for file in files} for name, files in made.items()}


def pod_arguments(objects, role, secrets, root):
    """Return the arguments of a pod's container, with its mounts under `root`."""
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects, role)["volumeMounts"]}
    for volume in pod(objects, role)["volumes"]:
        name = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
        if name:
            project(secrets[name], root / mounts[volume["name"]].lstrip("/"))
    return [re.sub(r"=/keys/", f"={root}/keys/", word) for word in container(objects, role)["args"]]


def test_the_processes_of_the_pods_connect_with_their_keys(fleet, secrets, tmp_path):
    objects = build(FOLDER / "overlays/single-node")
    broker = pod_arguments(objects, "broker", secrets, tmp_path / "broker")
    # Free ports replace the addresses of the pod.
    arguments = [word for word in broker if not re.match("--(frontend|backend|http)=", word)]
    place = fleet.start_broker(*arguments, *BROKER)
    worker = pod_arguments(objects, "worker", secrets, tmp_path / "worker")
    arguments = [word for word in worker if not re.match("--(broker=|name=|device=|http-)", word)]
    fleet.start_worker("pod-1", *arguments, *SIMULATED)

    alice = tmp_path / "clients/alice.key_secret"
    with Client(place.frontend, key=alice, broker_key=tmp_path / "broker.key") as client:
        fleet.wait_for_workers(client, 1)
        assert client.generate("a red circle", seed=1).worker == "pod-1"

    arguments = [
        word for word in pod_arguments(objects, "gateway", secrets, tmp_path / "gateway") if "--http" not in word
    ]
    gateway = Gateway(fleet, "gateway", tmp_path / "state", arguments)
    api_key = gateway.add_key("alice")
    image = gateway.openai(api_key).images.generate(prompt="a red circle", extra_body={"seed": 1}).data[0]
    gateway.close()
    assert (image.seed, bool(image.b64_json)) == (1, True)


POD = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Runs a command as process 1 of a process namespace."""


@pytest.mark.skipif(
    subprocess.run([*POD, "true"], capture_output=True, check=False).returncode != 0,
    reason="process namespaces can't be created here",
)
def test_the_pre_stop_hook_drains_a_worker_and_sigterm_does_not_interrupt_that(fleet, client):
    fleet.start_worker("pod-1", "--gpu", "0", *SIMULATED, "--capacity", "64", prefix=POD)
    fleet.wait_for_workers(client, 1)
    jobs = [client.submit(f"picture {seed}", seed=seed, width=32, height=32) for seed in range(60)]
    fleet.wait_until(lambda: client.stats()["per_gpu_stats"][0]["running"] > 0, "a running batch")
    unshare = fleet.processes.pop("pod-1")
    (process,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    hook = container(build(FOLDER / "overlays/single-node"), "worker")["lifecycle"]["preStop"]["exec"]["command"]
    subprocess.run(["nsenter", "--target", process, "--pid", "--mount", *hook], check=True)
    subprocess.run(["kill", "-TERM", process], check=True)
    assert unshare.wait(60) == 0
    start_simulated(fleet, client, "pod-2")
    assert [job.result(timeout=60).seed for job in jobs] == list(range(60))
    assert client.stats()["totals"]["workers_lost"] == 0
