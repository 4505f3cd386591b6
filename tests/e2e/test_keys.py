"""A guarded fleet by the commands of the README: keygen, keys in place, strangers told why."""

import signal

import pytest

from imagegen_client import Client, UnauthorizedError
from tests.e2e.conftest import BROKER, SIMULATED, command


@pytest.fixture
def keys(tmp_path):
    """Keys made as an operator makes them."""
    folder = tmp_path / "keys"
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers"), ("late", "later")):
        command("imagegen", "keygen", name, "--out", str(folder / place))
    return folder


@pytest.fixture
def guarded(fleet, keys):
    """A guarded broker; returns how its peers come in."""
    fleet.start_broker(
        *BROKER, "--key", str(keys / "broker.key_secret"),
        "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
    )  # fmt: skip

    def with_key(own):
        return ("--key", str(keys / own), "--broker-key", str(keys / "broker.key"))

    return with_key


def test_a_guarded_fleet_draws(fleet, guarded, keys, tmp_path):
    fleet.start_worker("gpu0", *SIMULATED, *guarded("workers/gpu0.key_secret"))
    out = tmp_path / "picture.png"
    asked = ("a red circle", "--out", str(out), "--broker", fleet.frontend)
    command("imagegen", "generate", *asked, *guarded("clients/alice.key_secret"))
    assert out.is_file()
    stranger = command(
        "imagegen", "generate", *asked, "--overwrite", *guarded("later/late.key_secret"), check=False
    )
    assert stranger.returncode == 1
    assert "error: unauthorized" in stranger.stderr
    assert "does not accept this key" in stranger.stderr


def test_a_worker_whose_key_comes_late_is_let_in_after_a_sighup(fleet, guarded, keys, tmp_path):
    fleet.start_worker("late", *SIMULATED, *guarded("later/late.key_secret"))
    log = tmp_path / "logs" / "late.log"
    fleet.wait_until(lambda: "does not accept this key" in log.read_text(), "the refusal in the worker's log")
    (keys / "later" / "late.key").rename(keys / "workers" / "late.key")
    fleet.processes["broker"].send_signal(signal.SIGHUP)
    with Client(fleet.frontend, key=keys / "clients/alice.key_secret", broker_key=keys / "broker.key") as client:
        fleet.wait_for_workers(client, 1)
        assert client.generate("x", seed=1).worker == "late"
        # And out again: its connection lives on, its standing does not.
        (keys / "workers" / "late.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: client.stats()["num_gpus"] == 0, "the end of the worker's standing")
        (keys / "clients" / "alice.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        job = client.submit("y", seed=2)
        with pytest.raises(UnauthorizedError):
            job.result(60)


def client_of(fleet, keys, broker="broker"):
    return Client(fleet.frontend, key=keys / "clients/alice.key_secret", broker_key=keys / f"{broker}.key")


def test_a_workers_key_is_replaced_and_no_request_is_lost(fleet, guarded, keys, tmp_path):
    log = tmp_path / "logs" / "broker.log"
    fleet.start_worker("gpu0", *SIMULATED, *guarded("workers/gpu0.key_secret"))
    with client_of(fleet, keys) as client:
        fleet.wait_for_workers(client, 1)
        jobs = [client.submit("x", seed=number) for number in range(40)]
        command("imagegen", "keygen", "gpu0-next", "--out", str(keys / "workers"))
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: log.read_text().count("allow-list reloaded role=workers") == 1, "the new list")
        assert fleet.terminate("gpu0") == 0
        fleet.start_worker("gpu0", *SIMULATED, *guarded("workers/gpu0-next.key_secret"))
        (keys / "workers" / "gpu0.key").unlink()
        fleet.processes["broker"].send_signal(signal.SIGHUP)
        fleet.wait_until(lambda: log.read_text().count("allow-list reloaded role=workers") == 2, "the next list")
        assert [job.result(60).seed for job in jobs] == list(range(40))
        fleet.start_worker("stale", *SIMULATED, *guarded("workers/gpu0.key_secret"))
        stale = tmp_path / "logs" / "stale.log"
        fleet.wait_until(lambda: "does not accept this key" in stale.read_text(), "the end of the old key")
        assert [gpu["worker"] for gpu in client.stats()["per_gpu_stats"]] == ["gpu0"]


def test_the_brokers_key_is_replaced_by_starting_all_anew(fleet, guarded, keys, tmp_path):
    fleet.start_worker("gpu0", *SIMULATED, *guarded("workers/gpu0.key_secret"))
    with client_of(fleet, keys) as client:
        fleet.wait_for_workers(client, 1)
    command("imagegen", "keygen", "broker-next", "--out", str(keys))
    assert fleet.terminate("broker") == 0
    fleet.start_broker(
        *BROKER, "--key", str(keys / "broker-next.key_secret"),
        "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
    )  # fmt: skip
    log = tmp_path / "logs" / "gpu0.log"
    fleet.wait_until(lambda: "or have another key" in log.read_text(), "the worker's complaint")
    assert fleet.terminate("gpu0") == 0
    own = ("--key", str(keys / "workers/gpu0.key_secret"), "--broker-key", str(keys / "broker-next.key"))
    fleet.start_worker("gpu0", *SIMULATED, *own)
    with client_of(fleet, keys, "broker-next") as client:
        assert client.generate("x", seed=1).worker == "gpu0"
