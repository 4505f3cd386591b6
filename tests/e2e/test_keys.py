"""A fleet with keys, by the commands of the documentation: keygen, allow-lists, and errors for unknown keys."""

import signal

import pytest

from imagegen_client import Client, UnauthorizedError
from tests.e2e.conftest import BROKER, SIMULATED, command


@pytest.fixture
def keys(tmp_path):
    """A folder with keys that `imagegen keygen` generated."""
    folder = tmp_path / "keys"
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers"), ("late", "later")):
        command("imagegen", "keygen", name, "--out", str(folder / place))
    return folder


@pytest.fixture
def broker_with_keys(fleet, keys):
    """Start a broker with keys; return a function that returns the key options of a peer."""
    fleet.start_broker(
        *BROKER, "--key", str(keys / "broker.key_secret"),
        "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
    )  # fmt: skip

    def key_options(own):
        return ("--key", str(keys / own), "--broker-key", str(keys / "broker.key"))

    return key_options


def test_a_fleet_with_keys_serves_authorized_peers_only(fleet, broker_with_keys, keys, tmp_path):
    fleet.start_worker("gpu0", *SIMULATED, *broker_with_keys("workers/gpu0.key_secret"))
    out = tmp_path / "picture.png"
    request = ("a red circle", "--out", str(out), "--broker", fleet.frontend)
    command("imagegen", "generate", *request, *broker_with_keys("clients/alice.key_secret"))
    assert out.is_file()
    stranger = command(
        "imagegen", "generate", *request, "--overwrite", *broker_with_keys("later/late.key_secret"), check=False
    )
    assert stranger.returncode == 1
    assert "error: unauthorized" in stranger.stderr
    assert "does not accept this key" in stranger.stderr


def test_sighup_admits_new_keys_and_revokes_removed_ones(fleet, broker_with_keys, keys, tmp_path):
    fleet.start_worker("late", *SIMULATED, *broker_with_keys("later/late.key_secret"))
    log = tmp_path / "logs" / "late.log"
    fleet.wait_until(lambda: "does not accept this key" in log.read_text(), "the rejection in the worker's log")
    (keys / "later" / "late.key").rename(keys / "workers" / "late.key")
    fleet.processes["broker"].send_signal(signal.SIGHUP)
    with Client(fleet.frontend, key=keys / "clients/alice.key_secret", broker_key=keys / "broker.key") as client:
        fleet.wait_for_workers(client, 1)
        assert client.generate("x", seed=1).worker == "late"
        # Revocation: the connection persists, the registration does not.
        (keys / "workers" / "late.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: client.stats()["num_gpus"] == 0, "the removal of the worker")
        (keys / "clients" / "alice.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        job = client.submit("y", seed=2)
        with pytest.raises(UnauthorizedError):
            job.result(60)


def client_of(fleet, keys, broker="broker"):
    return Client(fleet.frontend, key=keys / "clients/alice.key_secret", broker_key=keys / f"{broker}.key")


def test_replacing_the_key_of_a_worker_loses_no_request(fleet, broker_with_keys, keys, tmp_path):
    log = tmp_path / "logs" / "broker.log"
    fleet.start_worker("gpu0", *SIMULATED, *broker_with_keys("workers/gpu0.key_secret"))
    with client_of(fleet, keys) as client:
        fleet.wait_for_workers(client, 1)
        jobs = [client.submit("x", seed=number) for number in range(40)]
        command("imagegen", "keygen", "gpu0-next", "--out", str(keys / "workers"))
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: log.read_text().count("allow-list reloaded role=workers") == 1, "the new list")
        assert fleet.terminate("gpu0") == 0
        fleet.start_worker("gpu0", *SIMULATED, *broker_with_keys("workers/gpu0-next.key_secret"))
        (keys / "workers" / "gpu0.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: log.read_text().count("allow-list reloaded role=workers") == 2, "the next list")
        assert [job.result(60).seed for job in jobs] == list(range(40))
        fleet.start_worker("stale", *SIMULATED, *broker_with_keys("workers/gpu0.key_secret"))
        stale = tmp_path / "logs" / "stale.log"
        fleet.wait_until(lambda: "does not accept this key" in stale.read_text(), "the rejection of the old key")
        assert [gpu["worker"] for gpu in client.stats()["per_gpu_stats"]] == ["gpu0"]


def test_replacing_the_key_of_the_broker_requires_a_restart_of_all(fleet, broker_with_keys, keys, tmp_path):
    fleet.start_worker("gpu0", *SIMULATED, *broker_with_keys("workers/gpu0.key_secret"))
    with client_of(fleet, keys) as client:
        fleet.wait_for_workers(client, 1)
    command("imagegen", "keygen", "broker-next", "--out", str(keys))
    assert fleet.terminate("broker") == 0
    fleet.start_broker(
        *BROKER, "--key", str(keys / "broker-next.key_secret"),
        "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
    )  # fmt: skip
    log = tmp_path / "logs" / "gpu0.log"
    fleet.wait_until(lambda: "or have another key" in log.read_text(), "the handshake failure in the worker's log")
    assert fleet.terminate("gpu0") == 0
    own = ("--key", str(keys / "workers/gpu0.key_secret"), "--broker-key", str(keys / "broker-next.key"))
    fleet.start_worker("gpu0", *SIMULATED, *own)
    with client_of(fleet, keys, "broker-next") as client:
        assert client.generate("x", seed=1).worker == "gpu0"
